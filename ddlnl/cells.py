"""One cell of a study, from named dataset to record.

Every step of a cell is kept in the store under a key made of all that it depends on: experts (shared by all IPCs of a
noise setting), the state of loops under way, each evaluation. A killed cell resumes and ends with the record it would
have had.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import math
import platform
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ddlnl
from ddlnl import (
    _allocator,
    archives,
    datasets,
    evaluation,
    measure,
    methods,
    noise,
    ops,
    preprocess,
    robust,
    stored_sets,
)
from ddlnl.curves import Curves
from ddlnl.datasets import ImageSet
from ddlnl.distilled import Protocol
from ddlnl.errors import InputError
from ddlnl.evaluation import RULES
from ddlnl.generators import numpy_generator
from ddlnl.preprocess import Preprocessing
from ddlnl.profiles import PROFILES, Profile
from ddlnl.store import Store, key_of
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
    """Load, unbalance, corrupt and split. Raises `InputError` where the cell cannot be (IPC above a class)."""
    methods.check(cell.profile, PROFILES, "profile")
    methods.check(cell.method, methods.METHODS, "method")
    place = _place(cell.dataset, data_dir)
    data = _prepared(cell.dataset, cell.noise, cell.imbalance, cell.seed, cell.profile, place)
    methods.check_square(data.train)
    if cell.method not in methods.WHOLE:
        methods.check_ipc(data.train, cell.ipc)
    return data


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
    if method in robust.METHODS:
        settings["objective"] = dataclasses.asdict(robust.Settings())
    elif method == "dance":
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
    return profile.full if method == "full" else robust.protocol(profile.full)


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
        self.preprocessing = self._preprocessing(_load(cell.dataset, _place(cell.dataset, data_dir))[0].train)
        if cell_key(cell, data_dir) != key:  # all is read by now
            raise InputError(f"The archive of {cell.dataset} was replaced while the cell ({cell}) began; run it again.")
        self.task = methods.Task(
            cell.method, self.train, cell.ipc, self.profile, self.preprocessing, cell.seed, self.device
        )
        self.seconds = {"experts": 0.0, "distil": 0.0, "evaluate": 0.0}
        self.notes: dict[str, Any] = {}
        self.parents: dict[str, str] = {}

    def _preprocessing(self, whole: ImageSet) -> Preprocessing:
        """Fitted once per dataset, on all its training images, and shared through the store."""
        kind = self.profile.preprocessing_for(self.cell.method)
        what = {"preprocessing": kind, "dataset": whole.name, "images": whole.fingerprint}
        key = self.fitted = key_of(what)
        tensors = self.store.compute(key, lambda: preprocess.fit(whole.images, kind, whole.name).tensors(), what)
        return Preprocessing.of(kind, tensors)

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
        what = {
            "algorithm": methods.ALGORITHM,
            "experts": expert_settings(self.profile),
            "images": self.train.fingerprint,
            "observed": datasets.label_hash(self.train.observed),
            "preprocessing": self.preprocessing.hash,
            "seed": self.cell.seed,
        }
        key = self.parents["experts"] = key_of(what)

        def make() -> dict[str, Tensor]:
            progress = self.store.progress(key)
            experts = methods.train_experts(self.task, progress)
            return experts | {"seconds": torch.tensor(progress.seconds, dtype=torch.float64)}

        experts = self.store.compute(key, make, what)
        self.store.forget_progress(key)
        self.seconds["experts"] = float(experts.pop("seconds"))
        return experts

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
        self.notes = small.meta
        self.parents["set"] = f"{self.key}-set"
        stored_sets.save(self.store, self.parents["set"], small, self.fitted)
        if small.free_labels:
            self.notes |= _scores(names[-1].replace("-", "_"), evaluation.select([evaluations.pop()], "last"))
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
        sets = {"test": self.data.test, "validation": self.data.validation}
        return {
            name: (
                evaluation.on_device(one, self.preprocessing, self.device),
                torch.from_numpy(one.observed).to(self.device),
            )
            for name, one in sets.items()
        }

    def _record(self, checkpoints: list[Curves | None]) -> dict[str, Any]:
        cell, train = self.cell, self.train
        names = ["full"] if cell.method in methods.WHOLE else methods.checkpoint_names(self.task)
        scores = [_scores(rule, evaluation.select([*filter(None, checkpoints)], rule)) for rule in RULES]
        return {
            **dataclasses.asdict(cell),
            **{column: value for one in scores for column, value in one.items()},
            "dataset": train.name,
            "rate": noise.parse(cell.noise).rate,
            "realised_rate": noise.realised_rate(train),
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
            "peak_memory_mib": measure.peak_mib(self.device),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "versions": {
                "ddlnl": ddlnl.__version__,
                "operators": ops.backend().name,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "data_hash": self.data.fingerprint,
            "noise_hash": datasets.label_hash(train.observed),
            "preprocessing_hash": self.preprocessing.hash,
            "parents": self.parents,
            "settings": settings_of(self.profile, cell, train.name),
            "key": self.key,
            "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }


def _scores(name: str, accuracies: list[float]) -> dict[str, Any]:
    """The columns of a record for the test accuracies of students that are chosen or trained in the way `name`."""
    return {
        f"accuracy_{name}": statistics.fmean(accuracies),
        f"accuracies_{name}": accuracies,
        f"std_{name}": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
    }
