"""Another student: ResNet-18 trained on the sets that were distilled for a ConvNet, and on the full noisy set.

Whether a distilled set beats the full noisy set may depend on the small network that both are trained with. No set is
distilled anew: those in the store are used, with the augmentation of their own protocol and the recipe of the profile
for ResNet-18. RCIG's sets are left out, whose students regress on free labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ddlnl import afterwards, cells, evaluation, measure, methods, records, study
from ddlnl.cells import Cell
from ddlnl.profiles import PROFILES, Profile
from ddlnl.store import Store, frame, key_of
from ddlnl.training import Protocol

KIND = "transfer"
METHODS = ("dance", "datm", "random", "full")
OF_CELL = ("dataset", "noise", "rate", "imbalance", "method", "ipc", "seed", "profile", "realised_rate")
OF_CELL += ("train_images", "validation_images", "test_images", "data_hash", "noise_hash", "preprocessing_hash")


def run(
    grid: Iterable[Cell],
    store_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    workers: int = 1,
    engine: str = "local",
    progress: bool = True,
    records: str | Path | None = None,
) -> pd.DataFrame:
    """Accuracies with ResNet-18 students, one row per finished cell of `METHODS`, with the columns of `study.run`.

    Other cells are left out. records: a folder whose records are shown instead, so that nothing is computed. Raises
    `InputError` before any work where a cell has not finished or its set is missing.
    """
    chosen = [cell for cell in dict.fromkeys(grid) if cell.method in METHODS]
    if records is not None:
        return study.recorded(chosen, records, KIND)
    keys = {cell: transfer_key(cell, data_dir) for cell in chosen}
    found = afterwards.run(KIND, keys, run_cell, Store(store_dir), data_dir, device, workers, engine, progress)
    return frame(found)


def protocol(profile: Profile, own: Protocol, whole: bool, images: int) -> Protocol:
    """How ResNet-18 is trained on so many images: as the profile says, with the augmentation of the protocol `own`.

    Batches are as small as the profile's or a little larger, so that none has a single image, which batch norm could
    not normalise.
    """
    base = profile.resnet_full if whole else profile.resnet
    size = next(size for size in range(base.recipe.batch_size, 2 * base.recipe.batch_size) if images % size != 1)
    kept = {name: getattr(own.recipe, name) for name in ("augmentation", "mode", "cutmix")}
    return dataclasses.replace(base, recipe=dataclasses.replace(base.recipe, batch_size=size, **kept))


def transfer_key(cell: Cell, data_dir: str | Path | None = None) -> str:
    """20 hex digits made of the cell's own key and the recipes for ResNet-18 of its profile."""
    profile = PROFILES[cell.profile]
    recipes = [dataclasses.asdict(one) for one in (profile.resnet, profile.resnet_full)]
    return key_of({"cell": cells.cell_key(cell, data_dir), "resnet18": recipes, "students": profile.resnet_students})


def run_cell(cell: Cell, store: Store, data_dir: str | Path | None, device: str) -> None:
    """Train the students of one cell and save their record, unless the store has it already."""
    key = transfer_key(cell, data_dir)
    with store.lock(key), measure.at_most_threads(PROFILES[cell.profile].threads):
        if store.record(KIND, key) is None:
            store.save_record(KIND, key, _record(cell, key, store, data_dir, device))
            store.forget_progress(key)


def _record(cell: Cell, key: str, store: Store, data_dir: str | Path | None, device: str) -> dict:
    place = evaluation.choose_device(device)
    measure.reset_peak(place)
    own, data = study.finished(cell, store.root, data_dir), cells.prepare(cell, data_dir)
    preprocessing, _ = cells.fitted(cell, store, data_dir)
    cells.require_unchanged(cell, own["key"], data_dir)
    whole = cell.method in methods.WHOLE
    if whole:
        images, targets = methods.training_tensors(data.train, preprocessing, place)
        published = data.profile.full
    else:
        small = study.distilled(cell, store.root, data_dir)
        images, targets = (tensor.to(place) for tensor in small.training_set())
        published = small.protocol
    chosen, students = protocol(data.profile, published, whole, len(images)), data.profile.resnet_students
    seeds, progress = evaluation.student_seeds(cell.seed, students), store.progress(key)
    exams = cells.exams(data, preprocessing, place)
    curves = evaluation.train_students(images, targets, chosen, exams, seeds, progress)
    return {
        **{name: own[name] for name in OF_CELL},
        **records.by_rule([curves]),
        **records.circumstances(place),
        "students": students,
        "checkpoints": ["resnet18"],
        "curves": [dataclasses.asdict(curves)],
        "seconds": progress.seconds + progress.aside,
        "parents": {"cell": own["key"]},
        "settings": {"student": dataclasses.asdict(chosen)},
        "key": key,
    }
