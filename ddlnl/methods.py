"""One protocol for every way to make a small training set: distillers and the controls they must beat.

`checkpoints` yields (name, DistilledSet) from the initial set to the final one; a control has a single checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ddlnl import controls, dance, evaluation, preprocess, training
from ddlnl.datasets import ImageSet
from ddlnl.distilled import DistilledSet
from ddlnl.errors import InputError, nearest
from ddlnl.preprocess import Preprocessing
from ddlnl.profiles import PROFILES, Profile

DISTILLERS = ("dance",)
CONTROLS = ("full", *controls.METHODS)
METHODS = DISTILLERS + CONTROLS
WITH_EXPERTS = (*DISTILLERS, "random_soft", "predicted")


def check(name: object, allowed: tuple[str, ...] | dict, what: str) -> None:
    """Raise `InputError` unless `name` is one of `allowed`."""
    if name not in allowed:
        raise InputError(f"The {what} {name!r} is unknown; allowed are {', '.join(allowed)}.{nearest(name, allowed)}")


def is_whole(value: object) -> bool:
    """True for an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_square(images: ImageSet) -> None:
    """Raise `InputError` unless the images are square, as the networks need them."""
    height, width = images.images.shape[1:3]
    if height != width:
        raise InputError(f"The images of {images.name} have {height}x{width} pixels, and they must be square.")


def check_ipc(train: ImageSet, ipc: int) -> None:
    """Raise `InputError` unless every observed class of `train` has at least `ipc` images."""
    if not is_whole(ipc) or ipc < 1:
        raise InputError(f"The IPC is {ipc!r}, and it must be a whole number of at least 1.")
    counts = torch.bincount(torch.from_numpy(train.observed), minlength=train.num_classes)
    smallest = int(counts.min())
    if ipc > smallest:
        rarest = train.class_names[int(counts.argmin())]
        raise InputError(
            f"The IPC {ipc} is more than the {smallest} training images with label {rarest!r} in {train.name} "
            f"({train.noise}); allowed is an IPC of at most {smallest}."
        )


def training_tensors(train: ImageSet, preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """All training images, preprocessed (N, C, H, W), and their observed labels as targets (N, K), on the device."""
    targets = training.one_hot(torch.from_numpy(train.observed), train.num_classes)
    return evaluation.on_device(train, preprocessing, device), targets.to(device)


def train_experts(
    train: ImageSet,
    profile: Profile,
    preprocessing: Preprocessing,
    seed: int,
    device: torch.device,
    progress: training.Progress | None = None,
) -> dict[str, Tensor]:
    """Experts of one noise setting, shared by all methods and IPCs: {"initial": (M, P), "trained": (M, P)}."""
    images, targets = training_tensors(train, preprocessing, device)
    return dance.train_experts(images, targets, profile.dance, seed, progress)


def checkpoint_names(method: str, profile: Profile) -> list[str]:
    """The names that `checkpoints` yields when it starts from the beginning, in order."""
    if method in controls.METHODS:
        return ["chosen"]
    return [f"iteration-{iteration}" for iteration in dance.checkpoints(profile.dance)]


def checkpoints(
    method: str,
    train: ImageSet,
    ipc: int,
    profile: Profile,
    experts: dict[str, Tensor] | None,
    preprocessing: Preprocessing,
    seed: int,
    device: torch.device,
    progress: training.Progress | None = None,
) -> Iterator[tuple[str, DistilledSet]]:
    """Yield (name, small set) at every checkpoint of `method`, the final set last.

    A run that resumes from `progress` yields the checkpoints still to come. `experts` may be None for methods outside
    `WITH_EXPERTS`.
    """
    blank = DistilledSet(torch.empty(0), torch.empty(0), train.class_names, method, ipc, preprocessing, profile.student)
    if method in controls.METHODS:
        network = profile.dance.architecture.build(train.num_classes, train.images.shape[1], train.images.shape[3])
        network.to(device)
        trained = None if experts is None else experts["trained"].to(device)
        images, labels, report = controls.choose(train, method, ipc, trained, network, preprocessing, seed)
        yield "chosen", replace(blank, images=images, labels=labels, meta=report)
        return
    labels = training.one_hot(torch.arange(train.num_classes), train.num_classes).repeat_interleave(ipc, 0)
    for iteration, images in dance.distil(train, ipc, profile.dance, experts, preprocessing, seed, device, progress):
        yield f"iteration-{iteration}", replace(blank, images=images, labels=labels, factor=profile.dance.factor)


def distill(
    noisy: ImageSet, method: str = "dance", ipc: int = 10, profile: str = "demo", seed: int = 0, device: str = "auto"
) -> DistilledSet:
    """Distil a (noisy) image set into `ipc` images per class, with nothing kept on disk.

    method: a distiller or a control other than "full". Trains its own experts on `noisy`. Only the observed labels are
    used. Raises `InputError` on an unknown name or an IPC larger than a class.
    """
    check(profile, PROFILES, "profile")
    check(method, tuple(name for name in METHODS if name != "full"), "method")
    check_square(noisy)
    check_ipc(noisy, ipc)
    place = evaluation.choose_device(device)
    chosen = PROFILES[profile].for_dataset(noisy.name, noisy.images.shape[1])
    preprocessing = preprocess.fit(noisy.images, chosen.preprocessing, noisy.name)
    experts = train_experts(noisy, chosen, preprocessing, seed, place) if method in WITH_EXPERTS else None
    *_, (_, small) = checkpoints(method, noisy, ipc, chosen, experts, preprocessing, seed, place)
    return small
