"""Supervised training of one network or a stack of networks at once, with the data held as one tensor on the device."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddlnl import augment, networks
from ddlnl.errors import Unfinished
from ddlnl.generators import derive, generator
from ddlnl.networks import Stack


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum, step decay, batches reshuffled every epoch with the last short one kept.

    augmentation is a DSA strategy (per-sample parameters; mode as in `augment.draw`) or "" for none; cutmix is its
    probability per mini-batch; decay_at lists the epochs, as fractions of `epochs`, after which the learning rate is
    multiplied by decay and, with `restart`, momentum begins anew.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay: float = 0.2
    decay_at: tuple[float, ...] = (2 / 3, 5 / 6)
    augmentation: str = ""
    mode: str = "composed"
    cutmix: float = 0.0
    restart: bool = False

    def rate(self, epoch: int) -> float:
        """Learning rate of `epoch` (counted from 0)."""
        return self.lr * self.decay ** sum(epoch >= max(1, int(self.epochs * part)) for part in self.decay_at)


@dataclass(frozen=True)
class Architecture:
    """Which network: family "convnet" or "resnet18", and its shape; sizes and classes come from the data.

    width: channels of a ConvNet's blocks, or of the second of a ResNet-18's four stages (128 in the usual network, as
    in the usual ConvNet), whose only choice it is.
    precision: "float32", or "bf16" to compute activations in bfloat16 (`networks.in_precision`).
    """

    family: str = "convnet"
    depth: int = 3
    width: int = 128
    norm: str = "instance"
    pooling: str = "avg"
    precision: str = "float32"

    def build(self, classes: int, size: int, channels: int) -> nn.Module:
        """A freshly initialised network for (B, channels, size, size) images."""
        if self.family == "resnet18":
            network = networks.resnet18(classes, channels, self.width // 2)
        else:
            network = networks.ConvNet(classes, self.depth, self.width, size, channels, self.norm, self.pooling)
        return networks.in_precision(network, self.precision)


@dataclass(frozen=True)
class Protocol:
    """How students are trained and when they are tested.

    `max_steps` bounds the length on reduced profiles: epochs = min(recipe.epochs, max_steps / steps per epoch), with
    the decay points moved in proportion. `test_points` tests are spread evenly, the last one after the last epoch.
    """

    architecture: Architecture
    recipe: Recipe
    test_points: int = 6
    max_steps: int | None = None

    def recipe_for(self, images: int) -> Recipe:
        """The recipe for a training set of that many images."""
        if self.max_steps is None:
            return self.recipe
        steps = -(-images // self.recipe.batch_size)
        return replace(self.recipe, epochs=max(1, min(self.recipe.epochs, self.max_steps // steps)))

    def tested_epochs(self, epochs: int) -> list[int]:
        """The epochs (counted from 1) after which students are tested."""
        return sorted({round(epochs * point / self.test_points) for point in range(1, self.test_points + 1)} - {0})

    def without_augmentation(self) -> Protocol:
        """The same training without augmentation and CutMix."""
        return replace(self, recipe=replace(self.recipe, augmentation="", cutmix=0.0))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Protocol:
        """The inverse of `dataclasses.asdict`."""
        recipe = values["recipe"] | {"decay_at": tuple(values["recipe"]["decay_at"])}
        return cls(**values | {"architecture": Architecture(**values["architecture"]), "recipe": Recipe(**recipe)})


class Progress(typing.Protocol):
    """Where a loop finds its last state (`ddlnl.store.Progress`); `save` may decline when called too often, and what is
    done in `paused` is no part of the loop's time."""

    def load(self) -> tuple[int, dict[str, Tensor]] | None: ...

    def save(self, step: int, state: Callable[[], dict[str, Tensor]]) -> None: ...

    def paused(self) -> AbstractContextManager[None]: ...


class Objective:
    """What training minimises: the cross-entropy. A subclass replaces it, and may remember something between steps.

    peers: 1, or 2 where every other network of a stack is a student and the one after it a peer on the same batches.
    """

    peers = 1

    def __call__(self, logits: Tensor, targets: Tensor, index: Tensor, epoch: int) -> Tensor:
        """The loss to minimise, a scalar: the mean over a network's batch, summed over networks.

        logits, targets: (M, B, K), one batch per network; index: (M, B) int64, which images they are of; epoch: counted
        from 0.
        """
        # Summed over networks so that each gets its own gradient, unscaled.
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1)) * len(logits)

    def state(self) -> dict[str, Tensor]:
        """What a resumed training needs to go on as if it had not stopped."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""


class NotFinite(Unfinished):
    """A loss or another tensor became NaN or infinite; the message names it and when."""


class NoProgress(Unfinished):
    """A loop goes on without changing anything; the message says why and what helps."""


def initialise(build: Callable[[], nn.Module], seeds: Sequence[int], device: torch.device) -> Stack:
    """A stack of freshly initialised networks, network m drawn from its own `seeds[m]`."""
    networks = []
    for seed in seeds:
        with torch.random.fork_rng():  # nn.Module takes no generator; the global state is put back
            torch.manual_seed(derive(seed, "initialisation"))
            networks.append(build().to(device))
    return Stack(networks)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(N,) int64 labels as (N, classes) float32 probabilities, the form that `train` and CutMix take."""
    return F.one_hot(labels, classes).float()


def train(
    stack: Stack,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    seeds: Sequence[int],
    after_epoch: Callable[[int], None] | None = None,
    progress: Progress | None = None,
    objective: Objective | None = None,
) -> None:
    """Train every network of `stack` in place, each with its own batches and augmentation draws.

    Args:
        images: (N, C, H, W) preprocessed float32.
        targets: (N, K) float32 class probabilities.
        seeds: one per network; a network in a stack sees exactly the draws it would see alone.
        after_epoch: called with the number of finished epochs.
        progress: where to resume from; the end result is that of an uninterrupted run.
        objective: what is minimised, None for the cross-entropy.

    Raises `NotFinite` at the end of an epoch in which a loss became NaN or infinite, and where the last step made a
    network useless: that shows in its logits alone.
    """
    optimiser = torch.optim.SGD(
        stack.parameters.values(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    finished, objective = 0, objective or Objective()
    if progress and (saved := progress.load()):
        finished, state = saved
        _restore(stack, optimiser, objective, state)
    for epoch in range(finished, recipe.epochs):
        optimiser.param_groups[0]["lr"] = recipe.rate(epoch)
        if recipe.restart and recipe.rate(epoch) != recipe.rate(max(0, epoch - 1)):
            optimiser.state.clear()
        generators = [generator(seed, "epoch", epoch) for seed in seeds]
        loss = _epoch(stack, optimiser, images, targets, recipe, generators, objective, epoch)
        if not torch.isfinite(loss):
            raise NotFinite(
                f"The training loss became {loss.item()} in epoch {epoch + 1} of {recipe.epochs}; "
                f"a smaller learning rate than {recipe.lr} may help."
            )
        try:
            if epoch + 1 == recipe.epochs:
                predict(stack, images[: recipe.batch_size])
            if after_epoch:
                after_epoch(epoch + 1)
        except NotFinite as error:
            raise NotFinite(
                f"{error} That was after epoch {epoch + 1} of {recipe.epochs}; "
                f"a smaller learning rate than {recipe.lr} may help."
            ) from error
        if progress:
            progress.save(epoch + 1, lambda: _snapshot(stack, optimiser, objective))


def _epoch(stack, optimiser, images, targets, recipe, generators, objective, epoch) -> Tensor:
    """One pass over the data for every network; returns the sum of the batch losses."""
    orders = torch.stack([torch.randperm(len(images), generator=one) for one in generators]).to(images.device)
    total = torch.zeros((), device=images.device)
    for index in orders.split(recipe.batch_size, dim=1):
        inputs, labels = _batches(images, targets, index, recipe, generators)
        loss = objective(stack(inputs), labels, index, epoch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.detach()
    return total


def _batches(images, targets, index, recipe, generators) -> tuple[Tensor, Tensor]:
    """(M, B, C, H, W) images and (M, B, K) targets at `index` (M, B), row m changed by draws from generator m."""
    labels = targets[index]
    if not recipe.augmentation:
        inputs = images[index]
    else:
        size = images.shape[2:]
        draws = [augment.draw(recipe.augmentation, index.shape[1], size, one, recipe.mode) for one in generators]
        inputs = augment.stacked(draws).to(images.device)(images, index.flatten()).unflatten(0, index.shape)
    for row, one in enumerate(generators):
        if recipe.cutmix and float(torch.rand((), generator=one)) < recipe.cutmix:
            inputs[row], labels[row] = augment.cutmix(inputs[row], labels[row], one)
    return inputs, labels


def _snapshot(stack: Stack, optimiser: torch.optim.SGD, objective: Objective) -> dict[str, Tensor]:
    velocity = {
        f"velocity.{name}": optimiser.state[tensor]["momentum_buffer"].clone()
        for name, tensor in stack.parameters.items()
    }
    return stack.state() | velocity | {f"objective.{name}": tensor for name, tensor in objective.state().items()}


def _restore(stack: Stack, optimiser: torch.optim.SGD, objective: Objective, state: dict[str, Tensor]) -> None:
    stack.load(state)
    for name, tensor in stack.parameters.items():
        optimiser.state[tensor]["momentum_buffer"] = state[f"velocity.{name}"].to(tensor.device)
    prefix = "objective."
    objective.load({name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)})


@torch.no_grad()
def predict(stack: Stack, images: Tensor, batch_size: int | None = None) -> Tensor:
    """(M, N, K) logits of every network on (N, C, H, W) preprocessed images.

    Raises `NotFinite` where one is NaN or infinite: the largest of such logits would name a class all the same.
    """
    # A GPU takes what fits (counted at 32x32 pixels), a CPU what stays in its cache.
    batch_size = batch_size or (max(1, 2000 * 1024 // (images[0, 0].numel() * len(stack))) if images.is_cuda else 128)
    logits = torch.cat([stack(batch, training=False) for batch in images.split(batch_size)], 1)
    fine = torch.isfinite(logits).flatten(1).all(1)
    if not fine.all():
        bad = ", ".join(str(number) for number, good in enumerate(fine.tolist(), 1) if not good)
        raise NotFinite(f"The logits of network {bad} of {len(stack)} are not finite.")
    return logits
