"""The rows of trajectory matching: two passes that differentiate a gradient, or the whole unroll, as published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad
from torch.func import functional_call

from ddlnl import augment, networks
from ddlnl.bench._cases import CLASSES, SIDE, Case, Pair, _part, _random, _stack_and_eager
from ddlnl.bench._eager import EagerConvNet, _program, eager_augment
from ddlnl.generators import generator
from ddlnl.matching import matching_gradient

STEPS, DSA = 2, "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class EagerMatching:
    """The arguments of `matching_gradient`, with the network from torch's own modules."""

    network: EagerConvNet
    start: Tensor
    target: Tensor
    images: Tensor
    logits: Tensor
    step_size: Tensor
    minibatches: Tensor
    augmentations: Sequence[augment.Augmentation]

    def two_passes(self, mode: str) -> Sequence[Tensor]:
        """The student's steps, then every step once more with the graph of its gradient."""
        path, inputs = [self.start.clone().requires_grad_()], []
        for step in range(len(self.minibatches)):
            inputs.append(self.minibatch(step))
            moved = path[-1] - self.step_size * self.gradient(path[-1], *inputs[-1])
            path.append(moved.detach().requires_grad_())
        loss = self.loss(path[-1])
        (direction,) = grad(loss, path.pop())
        sums = [torch.zeros_like(one) for one in (self.images, self.logits, self.step_size)]
        for parameters, given in zip(reversed(path), reversed(inputs), strict=True):
            product = (direction * self.gradient(parameters, *given)).sum()
            wanted = (self.images, self.logits, *([parameters] if mode == "exact" else []))
            shares = grad(-self.step_size.detach() * product, wanted)
            for one, share in zip(sums, (*shares[:2], -product.detach()), strict=True):
                one += share
            direction = direction + sum(shares[2:])
        return loss, *sums

    def unrolled(self) -> Sequence[Tensor]:
        """The graph of all steps at once."""
        parameters = self.start.clone().requires_grad_()
        for step in range(len(self.minibatches)):
            parameters = parameters - self.step_size * self.gradient(parameters, *self.minibatch(step))
        loss = self.loss(parameters)
        return loss, *grad(loss, (self.images, self.logits, self.step_size))

    def minibatch(self, step: int) -> tuple[Tensor, Tensor]:
        index, drawn = self.minibatches[step], self.augmentations[step]
        return eager_augment(self.images[index], drawn.table, _program(drawn)), self.logits[index].softmax(1)

    def gradient(self, parameters: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(self.network, networks.unflatten(parameters, self.network), (images,))
        return grad(F.cross_entropy(logits, labels), parameters, create_graph=True)[0]

    def loss(self, parameters: Tensor) -> Tensor:
        distance = F.mse_loss(parameters, self.target, reduction="sum")
        return distance / F.mse_loss(self.start, self.target, reduction="sum")


def _matching(
    device: torch.device, scale: float, mode: str, precision: str = "float32", unrolled: bool = False
) -> list[Pair]:
    count = _part(100, scale, CLASSES)
    stack, network = _stack_and_eager(device, scale)
    start = networks.flatten(stack.state())[0]
    images, logits, away = _random(device, (count, 3, SIDE, SIDE), (count, CLASSES), start.shape)
    source = generator(0, "bench", "matching")
    given = {
        "start": start,
        "target": start + 0.01 * away,
        "images": images.requires_grad_(),
        "logits": logits.requires_grad_(),
        "step_size": torch.tensor(0.02, device=device, requires_grad=True),
        "minibatches": torch.stack([torch.randperm(count, generator=source) for _ in range(STEPS)]).to(device),
        "augmentations": [augment.draw(DSA, count, (SIDE, SIDE), source, "single").to(device) for _ in range(STEPS)],
    }
    eager = EagerMatching(network, **given)
    baseline = eager.unrolled if unrolled else partial(eager.two_passes, mode)
    return [Pair(baseline, partial(matching_gradient, stack.skeleton, **given, mode=mode, precision=precision))]


_SHAPES = f"trajectory matching, {STEPS} steps of 100 images, CIFAR-10, depth 3, width 128"

CASES = (
    Case(
        "matching_tesla",
        f"{_SHAPES}: TESLA's gradient, baseline differentiates gradients",
        3,
        partial(_matching, mode="tesla"),
        tolerance=2e-2,
        slow=True,
    ),
    Case(
        "matching_exact",
        "the same, exact gradient",
        2.5,
        partial(_matching, mode="exact"),
        tolerance=2e-2,
        slow=True,
    ),
    Case(
        "matching_unrolled",
        "the same, exact gradient, baseline unrolls all steps",
        3,
        partial(_matching, mode="exact", unrolled=True),
        tolerance=2e-2,
        slow=True,
    ),
    Case(
        "matching_tesla_bfloat16",
        "TESLA's gradient, ours in bf16, baseline float32",
        8,
        partial(_matching, mode="tesla", precision="bf16"),
        tolerance=0.2,
        slow=True,
    ),
    Case(
        "matching_exact_bfloat16",
        "exact gradient, ours in bf16, baseline float32",
        6,
        partial(_matching, mode="exact", precision="bf16"),
        tolerance=0.2,
        slow=True,
    ),
)
