"""One cell of a study, from named dataset to record.

Every step of a cell is kept in the store under a key made of all that it depends on: experts (shared by all IPCs of a
noise setting), the state of loops under way, each evaluation. A killed cell resumes and ends with the record it would
have had.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddlnl import (
    _allocator,
    archives,
    cleaned,
    cleaning,
    datasets,
    evaluation,
    measure,
    methods,
    noise,
    preprocess,
    records,
    robust,
    stored_sets,
)
from ddlnl.curves import Curves
from ddlnl.datasets import ImageSet
from ddlnl.distilled import Protocol
from ddlnl.errors import InputError
from ddlnl.generators import numpy_generator
from ddlnl.preprocess import Preprocessing
from ddlnl.profiles import PROFILES, Profile
from ddlnl.store import Progress, Store, key_of
from ddlnl.training import NotFinite, Objective
from ddlnl.trajectories import Trajectories


@dataclass(frozen=True)
class Cell:
    """One point of a study. `ipc` is 0 for the methods that train on the whole noisy set (`methods.WHOLE`)."""

    dataset: str
    noise: str
    method: str
    ipc: int
    seed: int
    profile: str
    imbalance: str = "none"

    def __str__(self) -> str:
        size = f"IPC {self.ipc}" if self.ipc else "all images"
        return f"{self.dataset}, {self.noise}, {self.method}, {size}, seed {self.seed}"


@dataclass(frozen=True)
class Data:
    """The images of a cell: noisy training and validation sets, the clean test set, and the profile fitted to them."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    profile: Profile
    fingerprint: str


def _place(dataset: str, data_dir: str | Path | None) -> tuple[str | None, tuple[int, ...] | None]:
    """The folder as text, and which file the archive is: one that changed is read again, whatever its time."""
    path = Path(dataset) if dataset.endswith(".npz") else archives.find(dataset, data_dir)
    status = path.stat() if path and path.is_file() else None
    which = status and (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return None if data_dir is None else str(data_dir), which


@functools.lru_cache(maxsize=2)
def _load(dataset: str, place: tuple) -> tuple[datasets.Dataset, str]:
    """The dataset, and the hash of its images and clean labels (human labels may be imported later)."""
    data = datasets.load(dataset, place[0])
    labels = [datasets.label_hash(part.clean) for part in (data.train, data.test)]
    return data, key_of([data.train.fingerprint, data.test.fingerprint, *labels])


@functools.lru_cache(maxsize=4)
def _prepared(dataset: str, spec: str, imbalance: str, seed: int, profile: str, place: tuple) -> Data:
    data, fingerprint = _load(dataset, place)
    chosen = PROFILES[profile].for_dataset(data.name, data.train.images.shape[1])
    noisy = noise.corrupt(noise.imbalance(data.train, imbalance, seed), spec, seed)
    order = numpy_generator(seed, "split").permutation(len(noisy))
    wanted = min(chosen.train_images or len(noisy), len(noisy))
    held_out = round(wanted * chosen.validation_share)
    if held_out < 1:
        needed = math.ceil(1 / chosen.validation_share)
        raise InputError(
            f"{dataset} has {len(noisy)} training images; to hold some out it must have at least {needed}."
        )
    kept = min(wanted, len(noisy) - held_out)
    train, validation = noisy.subset(np.sort(order[:kept])), noisy.subset(np.sort(order[kept : kept + held_out]))
    return Data(train, validation, data.test, chosen, fingerprint)


def prepare(cell: Cell, data_dir: str | Path | None = None) -> Data:
    """Load, unbalance, corrupt and split.

    Raises `InputError` where the cell cannot be (IPC above a class) or needs what is not installed.
    """
    methods.check(cell.profile, PROFILES, "profile")
    methods.check(cell.method, methods.METHODS, "method")
    place = _place(cell.dataset, data_dir)
    data = _prepared(cell.dataset, cell.noise, cell.imbalance, cell.seed, cell.profile, place)
    methods.check_square(data.train)
    if cell.method not in methods.WHOLE:
        methods.check_ipc(data.train, cell.ipc)
    if cell.method in methods.CLEANED:
        cleaned.check(data.train)
    return data


def fitted(cell: Cell, store: Store, data_dir: str | Path | None = None) -> tuple[Preprocessing, str]:
    """The preprocessing of a cell and the artefact that has it: fitted once per dataset, on all its training images."""
    whole = _load(cell.dataset, _place(cell.dataset, data_dir))[0].train
    kind = PROFILES[cell.profile].preprocessing_for(cell.method)
    what = {"preprocessing": kind, "dataset": whole.name, "images": whole.fingerprint}
    key = key_of(what)
    tensors = store.compute(key, lambda: preprocess.fit(whole.images, kind, whole.name).tensors(), what)
    return Preprocessing.of(kind, tensors), key


def require_unchanged(cell: Cell, key: str, data_dir: str | Path | None = None) -> None:
    """Once everything is read: raise `InputError` unless the archive is still that of the cell's `key`."""
    if cell_key(cell, data_dir) != key:
        raise InputError(f"The archive of {cell.dataset} was replaced while the cell ({cell}) began; run it again.")


def exams(data: Data, preprocessing: Preprocessing, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """Clean test images and held-out noisy ones for `evaluation.train_students`, with their observed labels."""
    sets = {"test": data.test, "validation": data.validation}
    return {
        name: (evaluation.on_device(one, preprocessing, device), torch.from_numpy(one.observed).to(device))
        for name, one in sets.items()
    }


def cell_key(cell: Cell, data_dir: str | Path | None = None) -> str:
    """20 hex digits made of the cell, the settings of its profile and the content of its dataset."""
    data, fingerprint = _load(cell.dataset, _place(cell.dataset, data_dir))
    methods.check(cell.profile, PROFILES, "profile")
    profile = PROFILES[cell.profile].for_dataset(data.name, data.train.images.shape[1])
    what = {
        "algorithm": methods.ALGORITHM,
        "cell": dataclasses.asdict(cell) | {"dataset": data.name},  # an archive may move
        "settings": settings_of(profile, cell, data.name),
        "data": fingerprint,
    }
    people = data.train.human.get(noise.parse(cell.noise).label_set)
    return key_of(what | ({} if people is None else {"human": datasets.label_hash(people)}))


def initial_key(key: str) -> str:
    """The name of the artefact that holds the set of the cell `key` before its first update."""
    return f"{key}-initial"


def settings_of(profile: Profile, cell: Cell, dataset: str) -> dict[str, Any]:
    """The part of a profile that a cell depends on; changing anything else leaves its record valid.

    `dataset` is the name of the cell's dataset where the cell may have a path.
    """
    method, plan, spec = cell.method, profile.datm, str(noise.parse(cell.noise))
    whole = method in methods.WHOLE
    student = whole_protocol(profile, method) if whole else profile.student_for(method, dataset, cell.ipc)
    settings = {name: getattr(profile, name) for name in ("students", "train_images", "validation_share")}
    settings |= {
        "preprocessing": profile.preprocessing_for(method),
        "full" if whole else "student": dataclasses.asdict(student),
    }
    if method in methods.CLEANED:
        settings["cleaning"] = cleaning_settings(profile)
    if method in robust.METHODS:
        settings["objective"] = dataclasses.asdict(robust.Settings())
    elif method in methods.DANCE:
        settings["distiller"] = dataclasses.asdict(profile.dance)
    elif method == "datm":
        settings["distiller"] = dataclasses.asdict(plan.settings_for(dataset, spec, cell.ipc))
        settings["experts"] = dataclasses.asdict(plan.experts)
    elif method == "rcig":
        settings["distiller"] = dataclasses.asdict(profile.rcig.settings_for(dataset, spec, cell.ipc))
    elif method in methods.WITH_EXPERTS:
        settings["experts"] = expert_settings(profile)
    return settings


def whole_protocol(profile: Profile, method: str) -> Protocol:
    """How a method of `methods.WHOLE` trains."""
    return robust.protocol(profile.full) if method in robust.METHODS else profile.full


def cleaning_settings(profile: Profile) -> dict[str, Any]:
    """What the cleaning of a noise setting depends on besides its data."""
    return {"folds": cleaning.FOLDS, "filter_by": cleaning.FILTER, "networks": dataclasses.asdict(profile.full)}


def expert_settings(profile: Profile) -> dict[str, Any]:
    """What the experts of a profile depend on besides their data."""
    return {name: dataclasses.asdict(profile.dance)[name] for name in ("experts", "architecture", "expert_recipe")}


def run_cell(cell: Cell, store: Store, data_dir: str | Path | None, device: str) -> None:
    """Compute one cell and save its record, unless the store has it already."""
    key = cell_key(cell, data_dir)
    _allocator.keep_freed_blocks()
    with store.lock(key), measure.at_most_threads(PROFILES[cell.profile].threads):
        if store.record("cell", key) is None:
            _Run(cell, key, store, data_dir, device).finish()


class _Run:
    """The steps of one cell, which share data, device and store."""

    def __init__(self, cell: Cell, key: str, store: Store, data_dir: str | Path | None, device: str) -> None:
        self.cell, self.key, self.store = cell, key, store
        self.device = evaluation.choose_device(device)
        measure.reset_peak(self.device)
        self.data = prepare(cell, data_dir)
        self.profile, self.train = self.data.profile, self.data.train
        self.preprocessing, self.fitted = fitted(cell, store, data_dir)
        require_unchanged(cell, key, data_dir)
        self.seconds = {"experts": 0.0, "distil": 0.0, "evaluate": 0.0}
        self.notes: dict[str, Any] = {}
        self.parents: dict[str, str] = {}
        if cell.method in methods.CLEANED:
            self.train = self._cleaned()
        self.task = methods.Task(
            cell.method, self.train, cell.ipc, self.profile, self.preprocessing, cell.seed, self.device
        )

    def finish(self) -> None:
        """Run what is still missing, save the record, and only then forget the intermediate states."""
        checkpoints = self._full() if self.cell.method in methods.WHOLE else self._small_sets()
        self.store.save_record("cell", self.key, self._record(checkpoints))
        self.store.forget_progress(self.key)

    def experts(self) -> dict[str, Tensor] | Trajectories | None:
        """The experts of this noise setting: trained by the first cell that needs them, then in the store."""
        if self.cell.method == "datm":
            kept = self.profile.datm.kept_epochs(self.train.name)  # shared by all IPCs
            found = methods.train_trajectories(self.task, self.store, kept)
            self.parents["experts"], self.seconds["experts"] = found.key, found.seconds
            return found
        return self._pairs() if self.cell.method in methods.WITH_EXPERTS else None

    def _pairs(self) -> dict[str, Tensor]:
        """DANCE's experts."""
        return self._shared("experts", expert_settings(self.profile), partial(methods.train_experts, self.task))

    def _cleaned(self) -> ImageSet:
        """The training set without what confident learning suspects, at least one image and IPC images per class."""

        def find(progress: Progress) -> dict[str, Tensor]:
            tensors = methods.training_tensors(self.train, self.preprocessing, self.device)
            return cleaned.find(*tensors, self.profile.full, self.cell.seed, progress)

        found = self._shared("cleaning", cleaning_settings(self.profile), find)
        train, self.notes = cleaned.keep(
            self.train, found["suspected"].numpy(), found["ranking"].numpy(), max(1, self.cell.ipc)
        )
        return train

    def _shared(
        self, name: str, settings: dict[str, Any], make: Callable[[Progress], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What networks that were trained on the same images and labels with the same seed give: made by the first
        cell that needs it, then in the store."""
        what = {
            "algorithm": methods.ALGORITHM,
            name: settings,
            "images": self.train.fingerprint,
            "observed": datasets.label_hash(self.train.observed),
            "preprocessing": self.preprocessing.hash,
            "seed": self.cell.seed,
        }
        key = self.parents[name] = key_of(what)

        def timed() -> dict[str, Tensor]:
            progress = self.store.progress(key)
            return make(progress) | {"seconds": torch.tensor(progress.seconds, dtype=torch.float64)}

        found = self.store.compute(key, timed, what)
        self.store.forget_progress(key)
        self.seconds["experts"] += float(found.pop("seconds"))
        return found

    def _full(self) -> list[Curves | None]:
        images, targets = methods.training_tensors(self.train, self.preprocessing, self.device)
        protocol, objective = whole_protocol(self.profile, self.cell.method), None
        if self.cell.method in robust.METHODS:
            known = dataclasses.replace(robust.Settings(), forget_rate=noise.realised_rate(self.train))
            objective = robust.objective(self.cell.method, known, self.profile.students, *targets.shape)
        self._evaluate("full", (images, targets), protocol, objective)
        return self._evaluations(["full"])

    def _small_sets(self) -> list[Curves | None]:
        """Make the small set, evaluating it at every checkpoint; the final set is kept, and the one it began as."""
        experts, names = self.experts(), methods.checkpoint_names(self.task)
        progress = self.store.progress(f"{self.key}-making")
        for name, small in methods.checkpoints(self.task, experts, progress):
            with progress.paused():
                if name == "iteration-0":
                    stored_sets.save(self.store, initial_key(self.key), small, self.fitted)
                self._evaluate(name, small.training_set(), small.protocol, final=name == names[-1])
        if small.free_labels:  # the second published run of RCIG's students goes into the notes
            names.append("without-augmentation")
            self._evaluate(names[-1], small.training_set(), small.protocol.without_augmentation())
        evaluations = self._evaluations(names)
        if evaluations is None:
            # A resumed run does not come back to a checkpoint it has passed, so start from the first one.
            self.store.forget_progress(f"{self.key}-making")
            return self._small_sets()
        self.seconds["distil"] = progress.seconds
        self.notes |= small.meta
        self.parents["set"] = f"{self.key}-set"
        stored_sets.save(self.store, self.parents["set"], small, self.fitted)
        if small.free_labels:
            self.notes |= records.scores(names[-1].replace("-", "_"), evaluation.select([evaluations.pop()], "last"))
        return evaluations

    def _evaluate(
        self,
        name: str,
        tensors: tuple[Tensor, Tensor],
        protocol: Protocol,
        objective: Objective | None = None,
        final: bool = True,
    ) -> None:
        """Keep the accuracies of fresh students on one training set in the store, unless they are there.

        Where a student diverges there is no accuracy to report. For the final set that is the end of the cell; an
        earlier one is kept as diverged, so that no rule can choose it.
        """
        key = f"{self.key}-{name}"
        if self.store.record("evaluation", key) is None:
            progress = self.store.progress(key)
            seeds = evaluation.student_seeds(self.cell.seed, self.profile.students)
            images, targets = (tensor.to(self.device) for tensor in tensors)
            try:
                curves = evaluation.train_students(images, targets, protocol, self._tests, seeds, progress, objective)
            except NotFinite as error:
                if final:
                    raise
                warnings.warn(f"{self.cell}: {name} counts as diverged. {error}", stacklevel=2)
                curves = None
            body = {"curves": curves and dataclasses.asdict(curves), "seconds": progress.seconds}
            self.store.save_record("evaluation", key, body)

    def _evaluations(self, names: list[str]) -> list[Curves | None] | None:
        """The kept accuracies of these checkpoints, None for one whose students diverged; or None where a record is
        missing (damaged since it was written)."""
        bodies = [self.store.record("evaluation", f"{self.key}-{name}") for name in names]
        if None in bodies:
            return None
        self.seconds["evaluate"] = sum(body["seconds"] for body in bodies)
        return [body["curves"] and Curves(**body["curves"]) for body in bodies]

    @functools.cached_property
    def _tests(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Held-out noisy images and clean test images, as exams."""
        return exams(self.data, self.preprocessing, self.device)

    def _record(self, checkpoints: list[Curves | None]) -> dict[str, Any]:
        cell, train = self.cell, self.train
        names = ["full"] if cell.method in methods.WHOLE else methods.checkpoint_names(self.task)
        where = records.circumstances(self.device)
        if cell.method in methods.CLEANED:
            where["versions"]["cleanlab"] = metadata.version("cleanlab")
        return {
            **dataclasses.asdict(cell),
            **records.by_rule(checkpoints),
            "dataset": train.name,
            "rate": noise.parse(cell.noise).rate,
            "realised_rate": noise.realised_rate(self.data.train),
            "students": self.profile.students,
            "checkpoints": names,
            "curves": [curves and dataclasses.asdict(curves) for curves in checkpoints],
            "diverged": [name for name, curves in zip(names, checkpoints, strict=True) if curves is None],
            "train_images": len(train),
            "validation_images": len(self.data.validation),
            "test_images": len(self.data.test),
            "notes": self.notes,
            "seconds": sum(self.seconds.values()),
            **{f"seconds_{step}": seconds for step, seconds in self.seconds.items()},
            **where,
            "data_hash": self.data.fingerprint,
            "noise_hash": datasets.label_hash(self.data.train.observed),
            "preprocessing_hash": self.preprocessing.hash,
            "parents": self.parents,
            "settings": settings_of(self.profile, cell, train.name),
            "key": self.key,
        }
