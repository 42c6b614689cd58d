"""One cell of a study: the images it is about, their preprocessing, and the key made of all that it depends on.

How a cell is computed is `ddlnl.cell_run`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddlnl import (
    archives,
    cleaned,
    cleaning,
    datasets,
    evaluation,
    methods,
    noise,
    preprocess,
    robust,
)
from ddlnl.datasets import ImageSet
from ddlnl.distilled import Protocol
from ddlnl.errors import InputError
from ddlnl.generators import numpy_generator
from ddlnl.places import path_of
from ddlnl.preprocess import Preprocessing
from ddlnl.profiles import PROFILES, Profile
from ddlnl.store import Store, key_of


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
    path = path_of(dataset, "dataset") if dataset.endswith(".npz") else archives.find(dataset, data_dir)
    status = path.stat() if path and path.is_file() else None
    which = status and (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return None if data_dir is None else str(data_dir), which


@functools.lru_cache(maxsize=2)
def _load(dataset: str, place: tuple) -> tuple[datasets.Dataset, str]:
    """The dataset, and the hash of its images and clean labels (human labels may be imported later)."""
    data = datasets.load(dataset, place[0])
    labels = [datasets.label_hash(part.clean) for part in (data.train, data.test)]
    return data, key_of([data.train.fingerprint, data.test.fingerprint, *labels])


@functools.lru_cache(maxsize=1)  # a copy of the images, made in under a second: cells take minutes
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
