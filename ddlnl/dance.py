"""DANCE: dual-view distribution alignment (arXiv 2406.01063).

Images are matched to real ones of the same observed class in the features of a random mixture of an untrained and a
trained network (inner-class view), and calibrated by the trained network's cross-entropy (inter-class view). The
published code takes one optimiser step per class; here all classes step together, which is the same update exactly:
momentum advances for every class at every step, and between two visits its effect has a closed form
(`Momentum.coast`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ddlnl import augment, loop, networks, ops, training
from ddlnl.datasets import ImageSet
from ddlnl.distilled import decode
from ddlnl.generators import derive, generator, numpy_generator
from ddlnl.precision import require_direction
from ddlnl.preprocess import Preprocessing, to_float
from ddlnl.training import Architecture, Recipe


@dataclass(frozen=True)
class Settings:
    """Hyperparameters; the defaults are the published ones for CIFAR and Tiny-ImageNet.

    lr_per_ipc: learning rate of the images divided by IPC (the gradient of a mean over a class shrinks as 1 / IPC).
    factor: multi-formation factor. initialisation: "real" (the first images of each observed class) or "noise".
    evaluate_at: iterations at which the set is a checkpoint, as fractions of `iterations`.
    """

    iterations: int = 10_000
    lr_per_ipc: float = 0.01
    momentum: float = 0.5
    factor: int = 2
    initialisation: str = "real"
    real_batch: int = 128
    synthetic_batch: int = 200
    calibration_passes: int = 1
    strategy: str = "color_crop_cutout"
    experts: int = 5
    architecture: Architecture = Architecture()  # noqa: RUF009 (frozen)
    expert_recipe: Recipe = Recipe(epochs=60, augmentation="color_crop", cutmix=0.5)  # noqa: RUF009 (frozen)
    evaluate_at: tuple[float, ...] = tuple(step / 20 for step in range(21))


def train_experts(
    images: Tensor,
    targets: Tensor,
    settings: Settings,
    seed: int,
    progress: training.Progress | None = None,
) -> dict[str, Tensor]:
    """Train the experts on the (noisy) training set: {"initial": (M, P), "trained": (M, P)} float32.

    images (N, C, H, W) preprocessed, targets (N, K). All experts train at once, each with its own data order and draws.
    """
    seeds = [derive(seed, "expert", expert) for expert in range(settings.experts)]
    classes, channels, size = targets.shape[1], images.shape[1], images.shape[-1]
    stack = training.initialise(lambda: settings.architecture.build(classes, size, channels), seeds, images.device)
    initial = networks.flatten(stack.state())
    training.train(stack, images, targets, settings.expert_recipe, seeds, progress=progress)
    return {"initial": initial, "trained": networks.flatten(stack.state())}


def initial_images(train: ImageSet, ipc: int, settings: Settings, seed: int) -> Tensor:
    """(K ipc, C, H, W) float32 in [0, 1], class-major.

    "real": tile (a, b) of image j of class c is the (k ipc + j)-th image with observed label c in dataset order, with
    k = a factor + b, shrunk by nearest neighbour. A class with fewer than ipc factor^2 images is topped up by drawing
    from itself with replacement. "noise": normal around 0.5 with deviation 0.25, clamped.
    """
    height, width, channels = train.images.shape[1:]
    if settings.initialisation == "noise":
        shape = (train.num_classes * ipc, channels, height, width)
        return (torch.randn(shape, generator=generator(seed, "initial images")) / 4 + 0.5).clamp(0, 1)
    parts = settings.factor**2
    sides = -(-height // settings.factor), -(-width // settings.factor)
    classes = []
    for label in range(train.num_classes):
        members = np.flatnonzero(train.observed == label)[: ipc * parts]
        if len(members) < ipc * parts:
            extra = numpy_generator(seed, "top up", label).choice(members, ipc * parts - len(members))
            members = np.concatenate([members, extra])
        shrunk = F.interpolate(to_float(train.images[members]), size=sides, mode="nearest")
        bands = [torch.cat(tiles, 3) for tiles in _grouped(shrunk.split(ipc), settings.factor)]
        classes.append(torch.cat(bands, 2)[:, :, :height, :width])
    return torch.cat(classes)


def _grouped(tiles: tuple[Tensor, ...], factor: int) -> list[tuple[Tensor, ...]]:
    return [tiles[start : start + factor] for start in range(0, len(tiles), factor)]


class RealBatches:
    """Endless batches of real images per observed class: reshuffled passes without replacement, short remainders
    dropped.

    Batch `turn` of a class depends on (seed, class, turn) alone, so a resumed run draws what an uninterrupted one
    would.
    """

    def __init__(self, observed: Tensor, classes: int, batch_size: int, seed: int) -> None:
        self.members = [torch.nonzero(observed.cpu() == label).flatten() for label in range(classes)]
        self.sizes = [min(batch_size, len(members)) for members in self.members]
        self.seed = seed
        self._pass: list[tuple[int, Tensor]] = [(-1, members) for members in self.members]

    def __call__(self, label: int, turn: int) -> Tensor:
        """Indices (B,) of the images of class `label` in batch number `turn`."""
        members, size = self.members[label], self.sizes[label]
        passes, place = divmod(turn, len(members) // size)
        if self._pass[label][0] != passes:
            order = torch.randperm(len(members), generator=generator(self.seed, "real", label, passes))
            self._pass[label] = (passes, members[order])
        return self._pass[label][1][place * size : (place + 1) * size]


class Momentum:
    """SGD with momentum on class-major images, all classes at once, equal to one step per class in class order."""

    def __init__(self, images: Tensor, classes: int, lr: float, momentum: float) -> None:
        self.images, self.velocity = images, torch.zeros_like(images)
        self.classes, self.lr, self.momentum = classes, lr, momentum

    def coast(self, steps: Tensor) -> None:
        """What `steps` (K,) steps k with zero gradient do to each class: S -= lr v m (1 - m^k) / (1 - m), v *= m^k."""
        m = self.momentum
        kept = (m ** steps.to(self.images)).repeat_interleave(len(self.images) // self.classes).view(-1, 1, 1, 1)
        self.images -= self.lr * m / (1 - m) * (1 - kept) * self.velocity
        self.velocity *= kept

    def step(self, gradient: Tensor) -> None:
        """One step of every class with its own gradient."""
        self.velocity.mul_(self.momentum).add_(gradient)
        self.images -= self.lr * self.velocity


@dataclass(frozen=True)
class Draws:
    """The random decisions of one iteration; nothing else in it is random."""

    expert: int
    mix: float
    matching: augment.Augmentation
    calibrations: list[augment.Augmentation]
    matched: Tensor | None
    calibrated: list[Tensor | None]


class Dance:
    """The losses and the update of one distillation run. Tensors live on one device; network parameters are frozen."""

    def __init__(
        self,
        train: ImageSet,
        ipc: int,
        settings: Settings,
        experts: dict[str, Tensor],
        preprocessing: Preprocessing,
        seed: int,
        device: torch.device,
    ) -> None:
        self.ipc, self.settings, self.seed, self.preprocessing = ipc, settings, seed, preprocessing
        self.classes, self.size = train.num_classes, train.images.shape[1:3]
        self.real = torch.from_numpy(train.images).to(device)
        self.batches = RealBatches(torch.from_numpy(train.observed), self.classes, settings.real_batch, seed)
        self.initial, self.trained = experts["initial"].to(device), experts["trained"].to(device)
        self.network = settings.architecture.build(self.classes, self.size[0], train.images.shape[3]).to(device)
        self.decoded = ipc * settings.factor**2
        # Images per call: on a CPU few, so that activations stay in cache; on a GPU many, counted at 32x32 pixels.
        limit = 8192 * 1024 // (self.size[0] * self.size[1]) if device.type == "cuda" else 256
        self.group = max(1, limit // max(settings.real_batch, min(self.decoded, settings.synthetic_batch)))

    def draw(self, iteration: int) -> Draws:
        """Everything random in `iteration`, from a generator named by (seed, iteration)."""
        source = generator(self.seed, "dance", iteration)
        passes = range(self.settings.calibration_passes)

        def augmentation() -> augment.Augmentation:
            return augment.draw(self.settings.strategy, self.classes, self.size, source)

        def subset() -> Tensor | None:
            if self.decoded <= self.settings.synthetic_batch:
                return None
            return torch.rand(self.classes, self.decoded, generator=source).argsort(1)[
                :, : self.settings.synthetic_batch
            ]

        return Draws(
            expert=int(torch.randint(len(self.trained), (), generator=source)),
            mix=float(torch.rand((), generator=source)),
            matching=augmentation(),
            calibrations=[augmentation() for _ in passes],
            matched=subset(),
            calibrated=[subset() for _ in passes],
        )

    def synthetic(self, images: Tensor, subset: Tensor | None, first: int) -> tuple[Tensor, Tensor]:
        """Decoded, normalised images of the classes from `first` on, class-major, and their labels."""
        factor, classes = self.settings.factor, len(images) // self.ipc
        decoded = decode(images, factor).unflatten(0, (factor**2, classes, self.ipc)).transpose(0, 1).flatten(1, 2)
        if subset is not None:
            index = subset[first : first + classes].to(images.device)
            decoded = decoded[torch.arange(classes, device=images.device)[:, None], index]
        labels = torch.arange(first, first + classes, device=images.device).repeat_interleave(decoded.shape[1])
        return self.preprocessing.apply(decoded.flatten(0, 1)), labels

    def matching_loss(self, images: Tensor, first: int, iteration: int, draws: Draws) -> Tensor:
        """Inner-class view, summed over classes: squared distance of mean features, real against synthetic."""
        device, classes = images.device, len(images) // self.ipc
        expert, mix = draws.expert, draws.mix
        mixed = mix * self.initial[expert] + (1 - mix) * self.trained[expert]
        parameters = networks.unflatten(mixed, self.network)
        chosen = [self.batches(label, iteration) for label in range(first, first + classes)]
        real_labels = torch.cat([torch.full_like(index, first + row) for row, index in enumerate(chosen)]).to(device)
        real = self.real[torch.cat(chosen).to(device)].permute(0, 3, 1, 2).to(images.dtype) / 255

        def features(inputs: Tensor, labels: Tensor) -> Tensor:
            return functional_call(self.network, parameters, (draws.matching.to(device).rows(labels)(inputs), True))

        with torch.no_grad():
            real = features(self.preprocessing.apply(real), real_labels)
        synthetic, labels = self.synthetic(images, draws.matched, first)
        return ops.class_mean_distance(real, real_labels, features(synthetic, labels), labels, self.classes)

    def calibration_loss(self, images: Tensor, first: int, draws: Draws, turn: int = 0) -> Tensor:
        """Inter-class view, summed over classes: mean cross-entropy of a class's images under the trained expert."""
        synthetic, labels = self.synthetic(images, draws.calibrated[turn], first)
        augmented = draws.calibrations[turn].to(images.device).rows(labels)(synthetic)
        parameters = networks.unflatten(self.trained[draws.expert], self.network)
        logits = functional_call(self.network, parameters, (augmented,))
        per_class = len(labels) // (len(images) // self.ipc)
        return F.cross_entropy(logits, labels, reduction="sum") / per_class

    def gradient(self, images: Tensor, loss) -> tuple[Tensor, Tensor]:
        """Sum over classes of `loss(images of a group of classes, first class)` and its gradient, group by group."""
        gradient, total = torch.empty_like(images), images.new_zeros(())
        for first in range(0, self.classes, self.group):
            rows = slice(first * self.ipc, (first + self.group) * self.ipc)
            part = images[rows].detach().requires_grad_()
            value = loss(part, first)
            gradient[rows] = torch.autograd.grad(value, part)[0]
            total += value.detach()
        return gradient, total

    def require_precision(self, images: Tensor, iteration: int) -> None:
        """Raise `InputError` unless the gradients of `iteration` point where those in float32 do."""
        exact, draws = copy.copy(self), self.draw(iteration)
        exact.network = replace(self.settings.architecture, precision="float32").build(
            self.classes, self.size[0], self.real.shape[3]
        )
        exact.network.to(images.device)
        for name, loss in (
            ("matching loss", lambda run: lambda s, first: run.matching_loss(s, first, iteration, draws)),
            ("calibration loss", lambda run: lambda s, first: run.calibration_loss(s, first, draws)),
        ):
            ours, theirs = (run.gradient(images, loss(run))[0] for run in (self, exact))
            require_direction(ours, theirs, self.settings.architecture.precision, name)

    def iterate(self, state: Momentum, iteration: int) -> tuple[Tensor, Tensor]:
        """One iteration in place; returns the two losses, each averaged over classes."""
        draws = self.draw(iteration)
        order = torch.arange(self.classes, device=state.images.device)
        everyone = torch.full_like(order, self.classes - 1)
        state.images.clamp_(0, 1)
        state.coast(order)
        gradient, matching = self.gradient(
            state.images, lambda s, first: self.matching_loss(s, first, iteration, draws)
        )
        state.step(gradient)
        calibration = torch.zeros_like(matching)
        for turn in range(self.settings.calibration_passes):
            state.coast(everyone)
            gradient, calibration = self.gradient(
                state.images, lambda s, first, turn=turn: self.calibration_loss(s, first, draws, turn)
            )
            state.step(gradient)
        state.coast(everyone - order)
        return matching / self.classes, calibration / self.classes


class _Distillation:
    """A run and the images that it changes."""

    def __init__(self, run: Dance, images: Momentum) -> None:
        self.run, self.images = run, images

    def begin(self) -> None:
        """Refuse a precision that is too coarse."""
        if self.run.settings.architecture.precision != "float32":
            self.run.require_precision(self.images.images, 0)

    def iterate(self, iteration: int) -> None:
        where = f"iteration {iteration} of {self.run.settings.iterations}"
        # Losses alone do not tell: an infinite pixel is white once it is clamped.
        loop.require_finite("DANCE", where, **self.state())
        matching, calibration = self.run.iterate(self.images, iteration)
        losses = {"matching_loss": matching, "calibration_loss": calibration}
        loop.require_finite("DANCE", where, **losses, **self.state())

    def state(self) -> dict[str, Tensor]:
        return {"images": self.images.images, "velocity": self.images.velocity}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def checkpoints(settings: Settings) -> list[int]:
    """The iterations before which `distil` yields the images, ascending; the last one is the end of the run."""
    return loop.checkpoints(settings.iterations, settings.evaluate_at)


def distil(
    train: ImageSet,
    ipc: int,
    settings: Settings,
    experts: dict[str, Tensor],
    preprocessing: Preprocessing,
    seed: int,
    device: torch.device,
    progress: training.Progress | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (iteration, images (K ipc, C, H, W) float32 on the CPU, not clamped) at every checkpoint, the last one
    last.

    A run that resumes yields the checkpoints that are still to come. Raises `training.NotFinite` when a loss is NaN or
    infinite, and `InputError` where the precision of the architecture is too coarse.
    """
    run = Dance(train, ipc, settings, experts, preprocessing, seed, device)
    images = initial_images(train, ipc, settings, seed).to(device)
    state = Momentum(images, run.classes, settings.lr_per_ipc * ipc, settings.momentum)
    for iteration in loop.follow(_Distillation(run, state), checkpoints(settings), progress):
        yield iteration, state.images.cpu().clone()
