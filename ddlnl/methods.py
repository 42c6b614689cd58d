"""One protocol for every way to make a small training set: distillers and the controls they must beat.

`checkpoints` yields (name, DistilledSet) from the initial set to the final one; a control has a single checkpoint.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ddlnl import controls, dance, datasets, datm, evaluation, preprocess, rcig, robust, training, trajectories
from ddlnl.datasets import ImageSet
from ddlnl.datm_initial import initial_set
from ddlnl.distilled import DistilledSet
from ddlnl.errors import InputError, nearest
from ddlnl.preprocess import Preprocessing
from ddlnl.profiles import PROFILES, Profile
from ddlnl.store import Store
from ddlnl.trajectories import Trajectories

# Raised by hand with every change of the code that changes results, so that older ones are not taken for new ones.
ALGORITHM = 3
DISTILLERS = ("dance", "datm", "rcig")
CONTROLS = ("full", *controls.METHODS)
CLEANED = ("cleaned", "cleaned_dance")  # clean the images by confident learning, then do as "full" or "dance"
WHOLE = ("full", *robust.METHODS, "cleaned")  # train on all images, so they have no IPC and make no set
METHODS = DISTILLERS + CONTROLS + robust.METHODS + CLEANED
DANCE = ("dance", "cleaned_dance")
MOST = 10_000  # seeds, workers, images per class: what is more is a slip
WITH_EXPERTS = (*DANCE, "random_soft", "predicted")  # those of DANCE; DATM has trajectories, RCIG none


def check(name: object, allowed: tuple[str, ...] | dict, what: str) -> None:
    """Raise `InputError` unless `name` is one of `allowed`."""
    if name not in allowed:
        raise InputError(f"The {what} {name!r} is unknown; allowed are {', '.join(allowed)}.{nearest(name, allowed)}")


def is_whole(value: object) -> bool:
    """True for an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_count(value: object, what: str) -> None:
    """Raise `InputError`, naming `what` it counts, unless `value` is a whole number from 1 to `MOST`."""
    if not is_whole(value) or not 1 <= value <= MOST:
        raise InputError(f"The {what} is {value!r}, and it must be a whole number of at least 1 and at most {MOST}.")


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


@dataclass(frozen=True)
class Task:
    """A small set to make: `ipc` images per class from `train` by `method`, with the settings of `profile`."""

    method: str
    train: ImageSet
    ipc: int
    profile: Profile
    preprocessing: Preprocessing
    seed: int
    device: torch.device

    @property
    def datm_settings(self) -> datm.Settings:
        return self.profile.datm.settings_for(self.train.name, self.train.noise, self.ipc)

    @property
    def rcig_settings(self) -> rcig.Settings:
        return self.profile.rcig.settings_for(self.train.name, self.train.noise, self.ipc)

    def network(self, architecture: training.Architecture) -> nn.Module:
        """An untrained network for these images."""
        return architecture.build(self.train.num_classes, *self.train.images.shape[2:]).to(self.device)


def train_experts(task: Task, progress: training.Progress | None = None) -> dict[str, Tensor]:
    """DANCE's experts of one noise setting, shared by all IPCs: {"initial": (M, P), "trained": (M, P)}."""
    images, targets = training_tensors(task.train, task.preprocessing, task.device)
    return dance.train_experts(images, targets, task.profile.dance, task.seed, progress)


def train_trajectories(task: Task, store: Store, kept: range) -> Trajectories:
    """DATM's experts of one noise setting, with their snapshots after the epochs `kept`: trained now unless the store
    has them."""
    identity = {
        "algorithm": ALGORITHM,
        "images": task.train.fingerprint,
        "observed": datasets.label_hash(task.train.observed),
        "preprocessing": task.preprocessing.hash,
    }
    images, targets = training_tensors(task.train, task.preprocessing, task.device)
    plan = task.profile.datm
    shown = sys.stderr.isatty()
    return trajectories.train(store, images, targets, plan.experts, task.seed, kept, identity, shown)


def checkpoint_names(task: Task) -> list[str]:
    """The names that `checkpoints` yields when it starts from the beginning, in order."""
    if task.method in controls.METHODS:
        return ["chosen"]
    if task.method in DANCE:
        iterations = dance.checkpoints(task.profile.dance)
    elif task.method == "datm":
        iterations = datm.checkpoints(task.datm_settings)
    else:
        iterations = rcig.checkpoints(task.rcig_settings)
    return [f"iteration-{iteration}" for iteration in iterations]


def checkpoints(
    task: Task, experts: dict[str, Tensor] | Trajectories | None, progress: training.Progress | None = None
) -> Iterator[tuple[str, DistilledSet]]:
    """Yield (name, small set) at every checkpoint of the method, the final set last.

    A run that resumes from `progress` yields the checkpoints still to come. `experts` are those of the method, or None.
    """
    make = {**dict.fromkeys(DANCE, _dance), "datm": _datm, "rcig": _rcig}.get(task.method, _control)
    protocol = task.profile.student_for(task.method, task.train.name, task.ipc)
    blank = DistilledSet(
        torch.empty(0), torch.empty(0), task.train.class_names, task.method, task.ipc, task.preprocessing, protocol
    )
    yield from make(task, blank, experts, progress)


def _control(
    task: Task, blank: DistilledSet, experts: dict[str, Tensor] | None, _
) -> Iterator[tuple[str, DistilledSet]]:
    network = task.network(task.profile.dance.architecture)
    trained = None if experts is None else experts["trained"].to(task.device)
    images, labels, report = controls.choose(
        task.train, task.method, task.ipc, trained, network, task.preprocessing, task.seed
    )
    yield "chosen", replace(blank, images=images, labels=labels, meta=report)


def _dance(task, blank, experts, progress) -> Iterator[tuple[str, DistilledSet]]:
    settings, classes = task.profile.dance, task.train.num_classes
    labels = training.one_hot(torch.arange(classes), classes).repeat_interleave(task.ipc, 0)
    for iteration, images in dance.distil(
        task.train, task.ipc, settings, experts, task.preprocessing, task.seed, task.device, progress
    ):
        yield f"iteration-{iteration}", replace(blank, images=images, labels=labels, factor=settings.factor)


def _datm(task, blank, experts, progress) -> Iterator[tuple[str, DistilledSet]]:
    settings, network = task.datm_settings, task.network(task.profile.datm.experts.architecture)
    finals = torch.stack([experts.final(expert) for expert in range(experts.experts)]).to(task.device)
    initial = initial_set(task.train, task.ipc, settings.initialisation, finals, network, task.preprocessing, task.seed)
    run = datm.Datm(initial, settings, experts, network, task.seed, task.device)
    for iteration in datm.distil(run, progress):
        recipe = replace(blank.protocol.recipe, lr=float(run.step_size))
        yield (
            f"iteration-{iteration}",
            replace(
                blank,
                images=run.images.cpu().clone(),
                labels=run.logits.softmax(1).cpu(),
                preprocessed=True,
                protocol=replace(blank.protocol, recipe=recipe),
                meta=initial.report | run.report(iteration),
            ),
        )


def _rcig(task, blank, _, progress) -> Iterator[tuple[str, DistilledSet]]:
    run = rcig.Rcig(task.train, task.ipc, task.rcig_settings, task.preprocessing, task.seed, task.device)
    for iteration in rcig.distil(run, progress):
        product = run.product()
        report = run.report(iteration) | {"log_temperature": float(product["log_temperature"])}
        yield (
            f"iteration-{iteration}",
            replace(blank, images=product["images"], labels=product["labels"], preprocessed=True, meta=report),
        )


def distill(
    noisy: ImageSet, method: str = "dance", ipc: int = 10, profile: str = "demo", seed: int = 0, device: str = "auto"
) -> DistilledSet:
    """Distil a (noisy) image set into `ipc` images per class, with nothing kept on disk.

    method: a distiller or a control that makes a set; none that cleans first. Trains its own experts on `noisy`. Only
    the observed labels are used. Raises `InputError` on an unknown name or an IPC larger than a class.
    """
    check(profile, PROFILES, "profile")
    check(method, tuple(name for name in METHODS if name not in WHOLE + CLEANED), "method")
    check_square(noisy)
    check_ipc(noisy, ipc)
    place = evaluation.choose_device(device)
    chosen = PROFILES[profile].for_dataset(noisy.name, noisy.images.shape[1])
    if method in ("datm", "rcig"):
        getattr(chosen, method).settings_for(noisy.name, noisy.noise, ipc)  # refuses before work where there are none
    preprocessing = preprocess.fit(noisy.images, chosen.preprocessing_for(method), noisy.name)
    return final_set(Task(method, noisy, ipc, chosen, preprocessing, seed, place))


def final_set(task: Task) -> DistilledSet:
    """The last checkpoint of a task, with experts of its own and nothing kept on disk."""
    with tempfile.TemporaryDirectory() as folder:
        experts = train_experts(task) if task.method in WITH_EXPERTS else None
        if task.method == "datm":
            experts = train_trajectories(task, Store(folder), task.datm_settings.window)
        *_, (_, small) = checkpoints(task, experts)
    return small
