"""The rows of the benchmark: baseline and operator on the same random numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.utils import vector_to_parameters

from ddlnl import augment, dance, networks, ops, preprocess, training
from ddlnl.bench._eager import EagerConvNet, EagerDance, eager_augment, eager_tail, eager_train
from ddlnl.datasets import ImageSet
from ddlnl.generators import generator, numpy_generator
from ddlnl.training import Architecture, Recipe

CLASSES, SIDE = 10, 32  # as in CIFAR-10


class Pair(NamedTuple):
    """Two ways to compute the same tensors, both with a fresh result at every call."""

    baseline: Callable[[], Sequence[Tensor]]
    ours: Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    target: the ratio of times it is built for, or None. build: (device, scale) to pairs; scale below 1 shrinks the
    sizes. Of several pairs the times are added and the ratios averaged. tolerance: how far the results of the first
    calls may be apart, as |ours - baseline| / |baseline| of every tensor: rounding moves a few values across the kink
    of ReLU, more so in a network. slow: takes minutes on a CPU.
    """

    name: str
    about: str
    target: float | None
    build: Callable[[torch.device, float], list[Pair]]
    tolerance: float = 1e-3
    slow: bool = False


def _part(whole: int, scale: float, least: int = 2) -> int:
    return max(least, round(whole * scale))


def _random(device: torch.device, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    source = generator(0, "bench")
    return [torch.randn(shape, generator=source).to(device, dtype) for shape in shapes]


def _block(
    device: torch.device,
    scale: float,
    side: int,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> list[Pair]:
    """Value and all gradients; `layout` is that of our side."""
    width = _part(128, scale)
    large, small = ((_part(64, scale), width, pixels, pixels) for pixels in (side, side // 2))
    x, g, weight, bias = _random(device, large, small, (width,), (width,), dtype=dtype)
    tail = eager_tail(weight, bias)
    inputs = [x.contiguous(memory_format=layout), weight, bias]
    gradient = g.contiguous(memory_format=layout)
    theirs = [x.clone().requires_grad_(), *tail.parameters()]
    for one in inputs:
        one.requires_grad_()

    def baseline() -> Sequence[Tensor]:
        y = tail(theirs[0])
        return y, *grad(y, theirs, g)

    def ours() -> Sequence[Tensor]:
        y = ops.norm_relu_pool(*inputs)
        return y, *grad(y, inputs, gradient)

    return [Pair(baseline, ours)]


def _tangent(device: torch.device, scale: float, side: int) -> list[Pair]:
    """The gradient of <g, J v> in x, weight and bias; the baseline takes it as that of <J' g, v>."""
    width = _part(128, scale)
    large, small = ((_part(64, scale), width, pixels, pixels) for pixels in (side, side // 2))
    g, *tensors = _random(device, small, large, large, *4 * [(width,)])
    leaves, direction = tensors[::2], tensors[1::2]
    tail = eager_tail(*leaves[1:])
    for leaf in leaves:
        leaf.requires_grad_()
    theirs = [leaves[0], *tail.parameters()]

    def baseline() -> Sequence[Tensor]:
        pulled = grad(tail(leaves[0]), theirs, g, create_graph=True)
        product = sum((one * v).sum() for one, v in zip(pulled, direction, strict=True))
        return grad(product, theirs, materialize_grads=True)

    def ours() -> Sequence[Tensor]:
        _, tangent = ops.norm_relu_pool_tangent(*tensors)
        return grad(tangent, leaves, g, materialize_grads=True)

    return [Pair(baseline, ours)]


def _stack_and_eager(
    device: torch.device, scale: float, precision: str = "float32"
) -> tuple[networks.Stack, EagerConvNet]:
    """The same network of depth 3, as a stack of one in that precision and eager in float32."""
    width = _part(128, scale)
    architecture = Architecture(width=width, precision=precision)
    stack = training.initialise(lambda: architecture.build(CLASSES, SIDE, 3), [0], device)
    eager = EagerConvNet(width, CLASSES).to(device)
    vector_to_parameters(networks.flatten(stack.state())[0], eager.parameters())
    return stack, eager


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """One vector: the gradient of a bias before a norm is rounding alone and counts only beside the others."""
    return torch.cat([one.detach().flatten() for one in tensors])


def _first_convolution(device: torch.device, scale: float, precision: str = "float32") -> list[Pair]:
    """Value and the gradients of weight and bias; ours in the layout that its network keeps."""
    width, count = _part(128, scale), _part(64, scale)
    eager = nn.Conv2d(3, width, 3, padding=1).to(device)
    convolution = networks.Convolution(3, width, 3, padding=1).to(device)
    convolution.load_state_dict(eager.state_dict())
    ours = networks.in_precision(convolution, precision)
    images, g = _random(device, (count, 3, SIDE, SIDE), (count, width, SIDE, SIDE))
    gradient = torch.empty_like(ours(images)).copy_(g)

    def both_ways(convolution: nn.Module, g: Tensor) -> Sequence[Tensor]:
        y = convolution(images)
        return y, *grad(y, list(convolution.parameters()), g)

    return [Pair(partial(both_ways, eager, g), partial(both_ways, ours, gradient))]


def _convnet(device: torch.device, scale: float) -> list[Pair]:
    stack, eager = _stack_and_eager(device, scale)
    count = _part(256, scale)
    images, g = _random(device, (count, 3, SIDE, SIDE), (count, CLASSES))

    def both_ways(network: nn.Module) -> Sequence[Tensor]:
        logits = network(images)
        return logits, _flat(grad(logits, list(network.parameters()), g))

    return [Pair(partial(both_ways, eager), partial(both_ways, stack.skeleton))]


def _training_step(device: torch.device, scale: float, precision: str = "float32") -> list[Pair]:
    """An epoch of one batch; the result is by how much it moved the parameters."""
    stack, eager = _stack_and_eager(device, scale, precision)
    count = _part(256, scale)
    images, logits = _random(device, (count, 3, SIDE, SIDE), (count, CLASSES))
    targets, recipe = (
        training.one_hot(logits.argmax(1), CLASSES),
        Recipe(1, count, augmentation="color_crop", decay_at=()),
    )
    start = networks.flatten(stack.state())[0]

    def baseline() -> Sequence[Tensor]:
        eager_train(eager, images, targets, recipe, seed=0)
        return (_flat(eager.parameters()) - start,)

    def ours() -> Sequence[Tensor]:
        training.train(stack, images, targets, recipe, seeds=[0])
        return (_flat(stack.parameters.values()) - start,)

    return [Pair(baseline, ours)]


def _augment(device: torch.device, scale: float, *programs: tuple[str, ...]) -> list[Pair]:
    count = _part(1024, scale)
    images, g = _random(device, *2 * [(count, 3, SIDE, SIDE)])
    images.requires_grad_()

    def both_ways(transform: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        y = transform(images)
        return y, *grad(y, images, g)

    pairs = []
    for program in programs:
        source = generator(0, "bench", *program)
        drawn = augment.draw("_".join(program), count, (SIDE, SIDE), source, mode="all").to(device)
        eager = partial(eager_augment, table=drawn.table, program=program)
        pairs.append(Pair(partial(both_ways, eager), partial(both_ways, drawn)))
    return pairs


def _dance(device: torch.device, scale: float, precision: str = "float32") -> list[Pair]:
    """The result is by how much an iteration moved the images."""
    classes, ipc, batch = _part(CLASSES, scale), _part(10, scale), _part(128, scale)
    labels = np.repeat(np.arange(classes), max(2 * batch, 4 * ipc))
    pixels = numpy_generator(0, "bench").integers(0, 256, (len(labels), SIDE, SIDE, 3), np.uint8)
    images = ImageSet(pixels, labels, labels, tuple(map(str, range(classes))), "random")
    architecture = Architecture(width=_part(128, scale), precision=precision)
    settings = dance.Settings(real_batch=batch, architecture=architecture)

    def build() -> nn.Module:
        return settings.architecture.build(classes, SIDE, 3)

    pair = [networks.flatten(training.initialise(build, seeds, device).state()) for seeds in ([0, 1], [2, 3])]
    experts = dict(zip(("initial", "trained"), pair, strict=True))
    preprocessing = preprocess.fit(pixels, "normalise", "random")
    run = dance.Dance(images, ipc, settings, experts, preprocessing, 0, device)
    start = dance.initial_images(images, ipc, settings, 0).to(device)
    state = dance.Momentum(start.clone(), classes, settings.lr_per_ipc * ipc, settings.momentum)
    eager, turns = EagerDance(run, start), (itertools.count(), itertools.count())

    def baseline() -> Sequence[Tensor]:
        eager.iterate(next(turns[0]))
        return (eager.images.detach() - start,)

    def ours() -> Sequence[Tensor]:
        run.iterate(state, next(turns[1]))
        return (state.images - start,)

    return [Pair(baseline, ours)]


def _trajectory(device: torch.device, scale: float) -> list[Pair]:
    student, target, start = _random(device, *3 * [(_part(320_010, scale),)])
    student.requires_grad_()

    def eager(student: Tensor, target: Tensor, start: Tensor) -> Tensor:
        return F.mse_loss(student, target, reduction="sum") / F.mse_loss(start, target, reduction="sum")

    def with_gradient(distance: Callable[..., Tensor]) -> Sequence[Tensor]:
        value = distance(student, target, start)
        return value, *grad(value, student)

    return [Pair(partial(with_gradient, eager), partial(with_gradient, ops.trajectory_distance))]


def _class_means(device: torch.device, scale: float) -> list[Pair]:
    counts, width = (_part(1280, scale, CLASSES), _part(400, scale, CLASSES)), _part(2048, scale)
    real, synthetic = _random(device, *((count, width) for count in counts))
    source = generator(0, "bench")
    labels = [(torch.randperm(count, generator=source) % CLASSES).to(device) for count in counts]
    synthetic.requires_grad_()

    def eager(real: Tensor, real_labels: Tensor, synthetic: Tensor, labels: Tensor, classes: int) -> Tensor:
        total = torch.zeros((), device=real.device)
        for label in range(classes):
            means = real[real_labels == label].mean(0), synthetic[labels == label].mean(0)
            total = total + (means[0] - means[1]).square().sum()
        return total

    def with_gradient(distance: Callable[..., Tensor]) -> Sequence[Tensor]:
        value = distance(real, labels[0], synthetic, labels[1], CLASSES)
        return value, *grad(value, synthetic)

    return [Pair(partial(with_gradient, eager), partial(with_gradient, ops.class_mean_distance))]


CASES = (
    Case("norm_relu_pool_32", "norm, ReLU and pool, 64 x 128 x 32 x 32", 6, partial(_block, side=32)),
    Case("norm_relu_pool_16", "norm, ReLU and pool, 64 x 128 x 16 x 16", 4, partial(_block, side=16)),
    Case("norm_relu_pool_8", "norm, ReLU and pool, 64 x 128 x 8 x 8", 3, partial(_block, side=8)),
    Case(
        "norm_relu_pool_32_channels_last",
        "the same at 32 pixels, ours channels-last, baseline contiguous",
        None,
        partial(_block, side=32, layout=torch.channels_last),
    ),
    Case(
        "norm_relu_pool_32_bfloat16",
        "the same at 32 pixels, both bfloat16, ours channels-last, baseline contiguous",
        None,
        partial(_block, side=32, dtype=torch.bfloat16, layout=torch.channels_last),
        tolerance=0.1,  # the twin rounds after every step; the kernel stays within 0.01
    ),
    Case(
        "norm_relu_pool_tangent_16",
        "derivative of norm, ReLU and pool in a direction, differentiated: 64 x 128 x 16 x 16",
        5,
        partial(_tangent, side=16),
    ),
    Case(
        "first_convolution",
        "first convolution, 64 images of 3 x 32 x 32 to 128 channels, with the gradient of its weights",
        3,
        _first_convolution,
    ),
    Case(
        "first_convolution_bf16",
        "the same, ours in bfloat16, baseline float32",
        None,
        partial(_first_convolution, precision="bf16"),
        tolerance=0.1,
    ),
    Case(
        "convnet",
        "ConvNet of depth 3 and width 128, batch of 256",
        1.5,
        _convnet,
        tolerance=1e-2,
        slow=True,
    ),
    Case(
        "augment_composed",
        "augmentation, all six operations on 1,024 images of 3 x 32 x 32",
        8,
        lambda device, scale: _augment(device, scale, augment.OPERATIONS),
    ),
    Case(
        "augment_single",
        "augmentation, one operation on 1,024 images of 3 x 32 x 32: mean over the six",
        4,
        lambda device, scale: _augment(device, scale, *((operation,) for operation in augment.OPERATIONS)),
    ),
    Case(
        "training_step",
        "supervised step with augmentation, depth 3, width 128, batch of 256",
        1.7,
        _training_step,
        tolerance=1e-2,
        slow=True,
    ),
    Case(
        "training_step_bf16",
        "the same, ours with bfloat16 activations, baseline float32",
        4,
        partial(_training_step, precision="bf16"),
        tolerance=0.1,
        slow=True,
    ),
    Case(
        "dance_iteration",
        "iteration of DANCE, CIFAR-10 shapes, 10 images per class, width 128, 128 real images per class",
        3,
        _dance,
        tolerance=1e-2,
        slow=True,
    ),
    Case(
        "dance_iteration_bf16",
        "the same, ours with bfloat16 activations, baseline float32",
        6,
        partial(_dance, precision="bf16"),
        tolerance=0.1,
        slow=True,
    ),
    Case("trajectory_distance", "trajectory distance of 320,010 parameters", None, _trajectory),
    Case(
        "class_mean_distance",
        "distance of class means, 1,280 real and 400 synthetic rows of 2,048 features, 10 classes",
        None,
        _class_means,
    ),
)
