"""How one cell of a study is computed, from its images to its record.

Every step of a cell is kept in the store under a key made of all that it depends on: experts (shared by all IPCs of a
noise setting), the state of loops under way, each evaluation. A killed cell resumes and ends with the record it would
have had.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddlnl import (
    _allocator,
    cells,
    cleaned,
    datasets,
    evaluation,
    measure,
    methods,
    noise,
    records,
    robust,
    stored_sets,
)
from ddlnl.cells import Cell
from ddlnl.curves import Curves
from ddlnl.datasets import ImageSet
from ddlnl.distilled import Protocol
from ddlnl.profiles import PROFILES
from ddlnl.store import Progress, Store, key_of
from ddlnl.training import NotFinite, Objective
from ddlnl.trajectories import Trajectories

SECOND_RUN = "without-augmentation"  # of RCIG's students on the final set, as it was published


def run_cell(cell: Cell, store: Store, data_dir: str | Path | None, device: str) -> None:
    """Compute one cell and save its record, unless the store has it already."""
    key = cells.cell_key(cell, data_dir)
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
        self.data = cells.prepare(cell, data_dir)
        self.profile, self.train = self.data.profile, self.data.train
        self.preprocessing, self.fitted = cells.fitted(cell, store, data_dir)
        cells.require_unchanged(cell, key, data_dir)
        # "beside" is what a reader who trains on the result does not pay: tests on the way, RCIG's second run.
        self.seconds = {"experts": 0.0, "distil": 0.0, "evaluate": 0.0, "beside": 0.0}
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
        return self._shared("experts", cells.expert_settings(self.profile), partial(methods.train_experts, self.task))

    def _cleaned(self) -> ImageSet:
        """The training set without what confident learning suspects, at least one image and IPC images per class."""

        def find(progress: Progress) -> dict[str, Tensor]:
            tensors = methods.training_tensors(self.train, self.preprocessing, self.device)
            return cleaned.find(*tensors, self.profile.full, self.cell.seed, progress)

        found = self._shared("cleaning", cells.cleaning_settings(self.profile), find)
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
        protocol, objective = cells.whole_protocol(self.profile, self.cell.method), None
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
                    stored_sets.save(self.store, cells.initial_key(self.key), small, self.fitted)
                self._evaluate(name, small.training_set(), small.protocol, final=name == names[-1])
        if small.free_labels:  # the second published run of RCIG's students goes into the notes
            names.append(SECOND_RUN)
            with progress.paused():
                self._evaluate(SECOND_RUN, small.training_set(), small.protocol.without_augmentation())
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
            self.notes |= records.scores(SECOND_RUN.replace("-", "_"), evaluation.select([evaluations.pop()], "last"))
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
            seeds = evaluation.student_seeds(self.cell.seed, self.profile.students)
            images, targets = (tensor.to(self.device) for tensor in tensors)
            exams, progress = self._tests, self.store.progress(key)  # whose clock starts when the images are there
            try:
                curves = evaluation.train_students(images, targets, protocol, exams, seeds, progress, objective)
            except NotFinite as error:
                if final:
                    raise
                warnings.warn(f"{self.cell}: {name} counts as diverged. {error}", stacklevel=2)
                curves = None
            spent = {"seconds": progress.seconds, "seconds_tests": progress.aside}
            self.store.save_record("evaluation", key, {"curves": curves and dataclasses.asdict(curves)} | spent)

    def _evaluations(self, names: list[str]) -> list[Curves | None] | None:
        """The kept accuracies of these checkpoints, None for one whose students diverged; or None where a record is
        missing (damaged since it was written).

        Seconds count as "evaluate" where students of `checkpoint_names` were trained; others go "beside".
        """
        bodies = [self.store.record("evaluation", f"{self.key}-{name}") for name in names]
        if None in bodies:
            return None
        spent = {name: body["seconds"] for name, body in zip(names, bodies, strict=True)}
        self.seconds["beside"] = spent.pop(SECOND_RUN, 0.0) + sum(body.get("seconds_tests", 0.0) for body in bodies)
        self.seconds["evaluate"] = sum(spent.values())
        return [body["curves"] and Curves(**body["curves"]) for body in bodies]

    @functools.cached_property
    def _tests(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Held-out noisy images and clean test images, as exams."""
        return cells.exams(self.data, self.preprocessing, self.device)

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
            "settings": cells.settings_of(self.profile, cell, train.name),
            "key": self.key,
        }
