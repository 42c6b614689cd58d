"""The row of expert training: GSAM as `trajectories` does it against the published way, eager and one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from ddlnl import augment, networks, training, trajectories
from ddlnl.bench._cases import CLASSES, SIDE, Case, Pair, _flat, _part, _random
from ddlnl.bench._eager import EagerConvNet, _program, eager_augment
from ddlnl.generators import generator
from ddlnl.training import Architecture
from ddlnl.trajectories import ExpertRecipe


class EagerGSAM:
    """The optimiser as published: loops over parameter tensors, each with a norm of its own, around torch's SGD."""

    def __init__(self, network: nn.Module, recipe: ExpertRecipe) -> None:
        self.parameters = list(network.parameters())
        self.sgd = torch.optim.SGD(self.parameters, lr=recipe.lr)
        self.rho, self.alpha = recipe.rho, recipe.alpha

    @torch.no_grad()
    def step(self, backward: Callable[[], None]) -> None:
        """`backward` computes the loss at the present parameters and its gradients."""
        with torch.enable_grad():
            backward()
        scale = self.rho / (_norm(p.abs() * p.grad for p in self.parameters) + 1e-12)
        moved = [p.square() * p.grad * scale for p in self.parameters]
        before = [p.grad.clone() for p in self.parameters]
        for p, one in zip(self.parameters, moved, strict=True):
            p.add_(one)
        with torch.enable_grad():
            backward()
        old, new = _norm(before), _norm(p.grad for p in self.parameters)
        product = sum((p.grad * one).sum() for p, one in zip(self.parameters, before, strict=True))
        cosine = product / (old * new + 1e-12)
        for p, one in zip(self.parameters, before, strict=True):
            p.grad.sub_(self.alpha * (one - cosine * old * p.grad / (new + 1e-12)))
        for p, one in zip(self.parameters, moved, strict=True):
            p.sub_(one)
        self.sgd.step()


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([one.norm() for one in tensors]).norm()


def eager_epoch(network: nn.Module, images: Tensor, targets: Tensor, recipe: ExpertRecipe, seed: int) -> None:
    """The first epoch of `trajectories.train_epoch` for one expert, with the same draws."""
    optimiser, source = EagerGSAM(network, recipe), generator(seed, "epoch", 1)
    for index in torch.randperm(len(images), generator=source).to(images.device).split(recipe.batch_size):
        drawn = augment.draw(recipe.augmentation, len(index), images.shape[2:], source, mode="single")
        inputs, labels = eager_augment(images[index], drawn.table, _program(drawn)), targets[index]

        def backward(inputs=inputs, labels=labels) -> None:
            optimiser.sgd.zero_grad()
            F.cross_entropy(network(inputs), labels).backward()

        optimiser.step(backward)


def _one_seed_per_operation(recipe: ExpertRecipe) -> list[int]:
    """Seeds of experts that draw all operations of the strategy between them for their first batch.

    The operation matters: published cropping hands on another memory layout, which slows every layer after it.
    """
    seeds: dict[int, int] = {}
    for seed in itertools.count():
        source = generator(seed, "epoch", 1)
        torch.randperm(recipe.batch_size, generator=source)
        seeds.setdefault(int(augment.draw(recipe.augmentation, 1, (SIDE, SIDE), source, mode="single").codes), seed)
        if len(seeds) == len(augment.OPERATIONS):
            return list(seeds.values())


def _expert_step(device: torch.device, scale: float, precision: str = "float32") -> list[Pair]:
    """An epoch of one batch for each of six experts; the result is by how much it moved their parameters."""
    width, count = _part(128, scale), _part(256, scale)
    recipe = ExpertRecipe(batch_size=count, architecture=Architecture(width=width, precision=precision))
    seeds = _one_seed_per_operation(recipe)
    images, logits = _random(device, (count, 3, SIDE, SIDE), (count, CLASSES))
    targets = training.one_hot(logits.argmax(1), CLASSES)
    size = min(trajectories.together(recipe, images), len(seeds))
    groups = [seeds[first : first + size] for first in range(0, len(seeds), size)]

    def build() -> nn.Module:
        return recipe.architecture.build(CLASSES, SIDE, 3)

    stacks = [training.initialise(build, group, device) for group in groups]

    def parameters() -> Tensor:
        return torch.cat([networks.flatten(stack.state()) for stack in stacks])

    start = parameters()
    eager = [EagerConvNet(width, CLASSES).to(device) for _ in seeds]
    for network, one in zip(eager, start, strict=True):
        vector_to_parameters(one.clone(), network.parameters())

    def baseline() -> Sequence[Tensor]:
        for network, seed in zip(eager, seeds, strict=True):
            eager_epoch(network, images, targets, recipe, seed)
        return (torch.stack([_flat(network.parameters()) for network in eager]) - start,)

    def ours() -> Sequence[Tensor]:
        for group, stack in zip(groups, stacks, strict=True):
            trajectories.train_epoch(stack, images, targets, recipe, group, epoch=1)
        return (parameters() - start,)

    return [Pair(baseline, ours)]


CASES = (
    Case(
        "expert_step",
        "step of six experts (GSAM, an operation of the augmentation each), depth 3, width 128, batch of 256",
        2,
        _expert_step,
        tolerance=1e-2,
        slow=True,
    ),
    Case(
        "expert_step_bfloat16",
        "the same, ours in bfloat16, whose rounding hides the neighbourhood of GSAM: near SGD",
        5,
        partial(_expert_step, precision="bf16"),
        tolerance=0.2,
        slow=True,
    ),
)
