"""Expert trajectories: the parameters of networks trained on the (noisy) training set, epoch after epoch.

Distillation by trajectory matching (arXiv 2203.11932 and its line up to DATM, arXiv 2310.05773) imitates stretches of
them. An expert is trained by GSAM (`ddlnl.gsam`), which has no state besides the parameters: a snapshot is at once a
result and a place to go on from. Each is a file of its own, `artefacts/<key>/expert-<m>-epoch-<e>.safetensors`: to read
one is to read and check that file alone, and a damaged one costs the epochs since the one before.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ddlnl import augment, gsam, networks, training
from ddlnl.errors import InputError
from ddlnl.generators import derive, generator
from ddlnl.networks import Stack
from ddlnl.store import Progress, Store, key_of, write_tensors
from ddlnl.training import Architecture, NotFinite

FRESH = -1  # the epoch of a network that has not been initialised


@dataclass(frozen=True)
class ExpertRecipe:
    """How experts are trained; the defaults are the published ones.

    SGD at a constant learning rate without momentum or weight decay, GSAM with radius `rho` and weight `alpha`; batches
    reshuffled every epoch, the last short one kept; one operation of the DSA strategy per batch with parameters per
    image ("" for none), the same augmented images for both gradients of a step. An architecture in "bf16" is faster but
    loses the sharpness term: its neighbourhood is smaller than what bfloat16 tells apart.
    """

    experts: int = 100
    epochs: int = 100
    batch_size: int = 256
    lr: float = 0.01
    rho: float = 0.01
    alpha: float = 0.3
    augmentation: str = "color_crop_cutout_flip_scale_rotate"
    architecture: Architecture = Architecture()  # noqa: RUF009 (frozen)


def train(
    store: Store,
    images: Tensor,
    targets: Tensor,
    recipe: ExpertRecipe,
    seed: int,
    kept_epochs: Iterable[int],
    identity: Mapping[str, Any],
    progress: bool = False,
) -> Trajectories:
    """Train what the store does not have yet of these trajectories; the device is that of the images.

    A process killed at any moment loses at most one epoch of one stack, and its successor ends with the same files.
    What an earlier call kept is used, also where it asked for other epochs or fewer experts. A second process waits.

    Args:
        images: (N, C, H, W) float32, preprocessed. targets: (N, K) float32 class probabilities.
        kept_epochs: the snapshots to keep besides epoch 0 (the initialisation) and the last one.
        identity: JSON-able, what else decides: hashes of images, observed labels and preprocessing, and the version of
            the algorithm.
        progress: show a line with the time left.

    Raises `InputError` for epochs outside the recipe and for networks with running statistics, `NotFinite` when a loss
    becomes NaN or infinite.
    """
    kept = {0, *kept_epochs, recipe.epochs}
    outside = [epoch for epoch in kept if not 0 <= epoch <= recipe.epochs]
    if outside:
        raise InputError(
            f"The epoch {outside[0]} of a trajectory is wanted, and it must be from 0 to {recipe.epochs}, "
            "the epochs that experts are trained for."
        )
    if recipe.architecture.family != "convnet" or recipe.architecture.norm == "batch":
        raise InputError(
            "Expert trajectories hold parameters alone, so the network must be a ConvNet without running statistics, "
            "with a norm other than 'batch'."
        )
    wanted = Trajectories(store, images, targets, recipe, seed, tuple(sorted(kept)), identity)
    wanted.complete(progress)
    return wanted


def train_epoch(
    stack: Stack, images: Tensor, targets: Tensor, recipe: ExpertRecipe, seeds: Sequence[int], epoch: int
) -> Tensor:
    """Epoch number `epoch` (from 1) of every network of `stack`, in place; network m draws from `seeds[m]` alone.

    images (N, C, H, W), targets (N, K). Returns (M,) sums over the batches of both losses of a step.
    """
    generators = [generator(seed, "epoch", epoch) for seed in seeds]
    orders = torch.stack([torch.randperm(len(images), generator=one) for one in generators]).to(images.device)
    parameters = list(stack.parameters.values())
    total = torch.zeros(len(stack), device=images.device)
    for index in orders.split(recipe.batch_size, dim=1):
        inputs, labels = _augmented(images, index, recipe, generators), targets[index.flatten()]

        def losses(inputs=inputs, labels=labels) -> Tensor:
            each = F.cross_entropy(stack(inputs).flatten(0, 1), labels, reduction="none")
            return each.view(len(stack), -1).mean(1)

        total += sum(gsam.step(parameters, losses, recipe.lr, recipe.rho, recipe.alpha))
    return total


def _augmented(images: Tensor, index: Tensor, recipe: ExpertRecipe, generators: Sequence[torch.Generator]) -> Tensor:
    """(M, B, C, H, W): the images of `index` (M, B), each row under the operation its network drew."""
    size, count = images.shape[2:], index.shape[1]
    drawn = [augment.draw(recipe.augmentation, count, size, one, mode="single") for one in generators]
    augmented = augment.stacked(drawn).to(images.device)(images, index.flatten())
    if images.is_cpu:  # an eighth faster through all layers; CUDA's fused tail would copy it back
        augmented = augmented.contiguous(memory_format=torch.channels_last)
    return augmented.unflatten(0, index.shape)


def together(recipe: ExpertRecipe, images: Tensor) -> int:
    """How many experts train as one stack: on a GPU what fits (counted at 32x32 pixels), on a CPU one at a time."""
    if not images.is_cuda:
        return 1
    return max(1, 8192 * 1024 // (images[0, 0].numel() * recipe.batch_size))


class Trajectories:
    """Snapshots of `experts` networks after `epochs`, read from the store one at a time; made by `train`.

    key: 20 hex digits made of all that one expert depends on; how many there are and for how long they train, at a
    constant learning rate, is not among it.
    """

    def __init__(
        self,
        store: Store,
        images: Tensor,
        targets: Tensor,
        recipe: ExpertRecipe,
        seed: int,
        epochs: tuple[int, ...],
        identity: Mapping[str, Any],
    ) -> None:
        self.store, self.images, self.targets, self.recipe = store, images, targets, recipe
        self.experts, self.epochs = recipe.experts, epochs
        self.seeds = [derive(seed, "expert", expert) for expert in range(recipe.experts)]
        settings = {name: value for name, value in asdict(recipe).items() if name not in ("experts", "epochs")}
        self.what = {"trajectories": settings, "seed": seed, "data": dict(identity)}
        self.key = key_of(self.what)

    def parameters(self, expert: int, epoch: int) -> Tensor:
        """(P,) float32 on the CPU, in the order of the architecture: expert number `expert` after `epoch` epochs.

        Reads one file and verifies its checksum; a damaged one is named, set aside and computed again. Raises
        `InputError` for an expert or an epoch that was not kept.
        """
        if not 0 <= expert < self.experts or epoch not in self.epochs:
            raise InputError(
                f"Epoch {epoch} of expert {expert} was not kept; there are experts 0 to {self.experts - 1} "
                f"after epochs {', '.join(map(str, self.epochs))}."
            )
        name = self._name(expert, epoch)
        found = self.store.tensors(name)
        if found is None:
            self.complete()
            found = self.store.tensors(name)
        return found[0]["parameters"]

    def final(self, expert: int) -> Tensor:
        """(P,) float32: the fully trained expert."""
        return self.parameters(expert, self.recipe.epochs)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds that training under this key has taken in all processes."""
        record = self.store.record("trajectories", self.key)
        return 0.0 if record is None else record["seconds"]

    def complete(self, progress: bool = False) -> None:
        """Train whatever is missing in the store."""
        with self.store.lock(self.key):
            while legs := self._legs():
                self._train_all(legs, progress)
            self.store.forget_progress(self.key)

    def _name(self, expert: int, epoch: int) -> str:
        return f"{self.key}/expert-{expert:03d}-epoch-{epoch:03d}"

    def _progress(self, expert: int) -> Progress:
        """The state after the last epoch, where that is not kept."""
        return self.store.progress(f"{self.key}-expert-{expert:03d}", interval=0)

    def _on_disk(self) -> dict[int, set[int]]:
        """The epochs that are there, by expert."""
        epochs = defaultdict(set)
        for path in self.store.artefact_path(self._name(0, 0)).parent.glob("expert-*-epoch-*.safetensors"):
            _, expert, _, epoch = path.stem.split("-")
            epochs[int(expert)].add(int(epoch))
        return epochs

    def _legs(self) -> dict[tuple[int, int], list[int]]:
        """What is to be trained: (epoch to start from, epoch to stop after) and the experts with that stretch."""
        there, legs = self._on_disk(), defaultdict(list)
        for expert in range(self.experts):
            missing = [epoch for epoch in self.epochs if epoch not in there[expert]]
            if missing:
                under_way = self._progress(expert).load()
                for leg in stretches(missing, there[expert] | ({under_way[0]} if under_way else set())):
                    legs[leg].append(expert)
        return legs

    def _train_all(self, legs: Mapping[tuple[int, int], list[int]], progress: bool) -> None:
        total = sum((stop - max(start, 0)) * len(experts) for (start, stop), experts in legs.items())
        most = together(self.recipe, self.images)
        with tqdm(total=total, unit="epoch", desc="experts", leave=False, disable=not progress, file=sys.stderr) as bar:
            for (start, stop), experts in legs.items():
                size = -(-len(experts) // -(-len(experts) // most))  # stacks of equal size
                for first in range(0, len(experts), size):
                    self._train(experts[first : first + size], start, stop, bar)

    def _train(self, experts: list[int], start: int, stop: int, bar: tqdm) -> None:
        """From the state of epoch `start` to that of epoch `stop`, saving every epoch."""
        stack = self._stack(experts, start)
        seconds = self.seconds
        for epoch in range(start + 1, stop + 1) if stack else ():
            began = time.monotonic()
            if epoch > 0:
                losses = train_epoch(
                    stack, self.images, self.targets, self.recipe, [self.seeds[expert] for expert in experts], epoch
                )
                self._require_finite(stack, experts, losses, epoch)
                bar.update(len(experts))
            self._save(stack, experts, epoch)
            seconds += time.monotonic() - began
            self.store.save_record("trajectories", self.key, {"seconds": seconds})

    def _stack(self, experts: list[int], epoch: int) -> Stack | None:
        """The experts after `epoch`, or None where a state turned out to be damaged (and was set aside)."""
        classes, channels, size = self.targets.shape[1], self.images.shape[1], self.images.shape[-1]
        seeds = [self.seeds[expert] for expert in experts]
        stack = training.initialise(
            lambda: self.recipe.architecture.build(classes, size, channels), seeds, self.images.device
        )
        if epoch == FRESH:
            return stack
        states = [self._state(expert, epoch) for expert in experts]
        if any(state is None for state in states):
            return None
        pieces = torch.stack(states).split([tensor[0].numel() for tensor in stack.parameters.values()], 1)
        named = zip(stack.parameters.items(), pieces, strict=True)
        stack.load({name: piece.reshape(tensor.shape) for (name, tensor), piece in named})
        return stack

    def _state(self, expert: int, epoch: int) -> Tensor | None:
        if kept := self.store.tensors(self._name(expert, epoch)):
            return kept[0]["parameters"]
        under_way = self._progress(expert).load()
        return under_way[1]["parameters"] if under_way and under_way[0] == epoch else None

    def _require_finite(self, stack: Stack, experts: list[int], losses: Tensor, epoch: int) -> None:
        fine = torch.isfinite(losses) & torch.isfinite(networks.flatten(stack.state())).all(1)
        if not fine.all():
            bad = [str(expert) for expert, good in zip(experts, fine.tolist(), strict=True) if not good]
            raise NotFinite(
                f"The training loss became NaN or infinite in epoch {epoch} of {self.recipe.epochs}, of expert "
                f"{', '.join(bad)}; a smaller learning rate than {self.recipe.lr} may help, earlier epochs are kept."
            )

    def _save(self, stack: Stack, experts: list[int], epoch: int) -> None:
        flat = networks.flatten(stack.state()).cpu()
        for expert, row in zip(experts, flat, strict=True):
            path = self.store.artefact_path(self._name(expert, epoch))
            if epoch not in self.epochs:
                self._progress(expert).save(epoch, lambda row=row: {"parameters": row})
            elif not path.exists():
                which = {"key": self.key, "expert": expert, "epoch": epoch}
                write_tensors(path, {"parameters": row}, self.what | which)


def stretches(missing: Sequence[int], there: set[int]) -> list[tuple[int, int]]:
    """The shortest (start, stop) that make the `missing` epochs (ascending) from the states that are `there`.

    Each starts from the last state before what it makes, `FRESH` where there is none.
    """
    found: list[tuple[int, int]] = []
    for epoch in missing:
        start = max((one for one in there if one < epoch), default=FRESH)
        if found and found[-1][1] >= start:
            found[-1] = (found[-1][0], epoch)
        else:
            found.append((start, epoch))
    return found
