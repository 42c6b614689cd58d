"""The attacks of `ddlnl.privacy` on finished cells: do students and released images tell who was a member?

Members are the training images that a cell distilled or trained on, with their observed labels. The others were held
out: the validation images and, where the noise can be drawn for them in the same way, the test images, whose labels are
corrupted for this purpose; clean labels would give them away. One student per cell is attacked: the first of the
cell's evaluation, trained again, since students are not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from ddlnl import afterwards, cells, claims, evaluation, measure, noise, privacy, records, study, training
from ddlnl.cells import Cell, Data
from ddlnl.datasets import ImageSet
from ddlnl.distilled import DistilledSet
from ddlnl.generators import derive
from ddlnl.methods import CONTROLS, DISTILLERS, WHOLE
from ddlnl.networks import Stack
from ddlnl.profiles import PROFILES
from ddlnl.store import Progress, Store, key_of

KIND = "membership"
ALGORITHM = 1  # raised by hand with every change of the code that changes results
REPEATS = 300  # of the bootstrap
METHODS = (*DISTILLERS, *CONTROLS)
LOSS, NEARNESS = "loss of a student", "nearest released image"
OF_CELL = ("dataset", "noise", "imbalance", "method", "ipc", "seed", "profile")
OF_CELL += ("data_hash", "noise_hash", "preprocessing_hash")
CIRCUMSTANCES = ("versions", "device", "threads", "seconds", "peak_memory_mib", "finished", "key")


def run(
    grid: Iterable[Cell],
    store_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    workers: int = 1,
    engine: str = "local",
    progress: bool = True,
) -> pd.DataFrame:
    """What each attack reaches on the finished cells of `METHODS`; other cells are left out.

    One row per cell and `attack`, `LOSS` or `NEARNESS`: `auc` with `auc_low` and `auc_high`; for each rate r of
    `privacy.RATES` `tpr_<r>`, `tpr_<r>_low` and `tpr_<r>_high`, None where fewer than 1 / r others are there; how many
    `members` and `others`; and, of the record that holds all attacks on a cell, `CIRCUMSTANCES`. Nothing is released by
    a cell of all images, and RCIG's students regress on free labels, so that each of these has one attack only. Raises
    `InputError` before any work where a cell has not finished or its set is missing.
    """
    keys = {cell: attack_key(cell, data_dir) for cell in dict.fromkeys(grid) if cell.method in METHODS}
    found = afterwards.run(KIND, keys, run_cell, Store(store_dir), data_dir, device, workers, engine, progress)
    rows = [
        {name: one[name] for name in OF_CELL + CIRCUMSTANCES} | attack for one in found for attack in one["attacks"]
    ]
    return pd.DataFrame(rows)


def attack_key(cell: Cell, data_dir: str | Path | None = None) -> str:
    """20 hex digits made of the cell's own key and the version of the attacks."""
    return key_of({"cell": cells.cell_key(cell, data_dir), "membership": ALGORITHM})


def run_cell(cell: Cell, store: Store, data_dir: str | Path | None, device: str) -> None:
    """Attack one cell and save the record, unless the store has it already."""
    key = attack_key(cell, data_dir)
    with store.lock(key), measure.at_most_threads(PROFILES[cell.profile].threads):
        if store.record(KIND, key) is None:
            store.save_record(KIND, key, _record(cell, key, store, data_dir, device))
            store.forget_progress(key)


def held_out(data: Data, imbalance: str, seed: int) -> list[ImageSet]:
    """The sets of images that nothing was trained on, with observed labels made as those of the training images.

    Test images are among them where the training set is balanced as they are and its noise depends on the class alone:
    labels of people, and noise that depends on the image, belong to the training images.
    """
    spec = data.train.noise
    if imbalance != "none" or noise.parse(spec).kind in ("human", "instance"):
        return [data.validation]
    return [data.validation, noise.corrupt(data.test, spec, derive(seed, "labels of held-out images"))]


def _record(cell: Cell, key: str, store: Store, data_dir: str | Path | None, device: str) -> dict[str, Any]:
    place, progress = evaluation.choose_device(device), store.progress(key)
    measure.reset_peak(place)
    own, data = study.finished(cell, store.root, data_dir), cells.prepare(cell, data_dir)
    preprocessing, _ = cells.fitted(cell, store, data_dir)
    cells.require_unchanged(cell, own["key"], data_dir)
    sides = [[data.train], held_out(data, cell.imbalance, cell.seed)]
    images = [torch.cat([evaluation.on_device(one, preprocessing, place) for one in side]) for side in sides]
    labels = [torch.from_numpy(np.concatenate([one.observed for one in side])).to(place) for side in sides]
    small = None if cell.method in WHOLE else study.distilled(cell, store.root, data_dir)
    attacks = []
    if small is None or not small.free_labels:
        student = _student(cell, data, small, (images[0], labels[0]), progress)
        logits = [training.predict(student, side) for side in images]
        attacks.append(_told(LOSS, [privacy.loss_scores(*side) for side in zip(logits, labels, strict=True)], cell))
    if small is not None:
        released = small.training_set()[0].to(place)
        attacks.append(_told(NEARNESS, [privacy.nearness_scores(side, released) for side in images], cell))
    return {
        **{name: own[name] for name in OF_CELL},
        **records.circumstances(place),
        "attacks": attacks,
        "seconds": progress.seconds,
        "parents": {"cell": own["key"]},
        "key": key,
    }


def _student(
    cell: Cell, data: Data, small: DistilledSet | None, members: tuple[Tensor, Tensor], progress: Progress
) -> Stack:
    """A stack of one: the first student of the cell's evaluation, trained again."""
    seeds, (images, labels) = evaluation.student_seeds(cell.seed, 1), members
    if small is None:
        targets = training.one_hot(labels, data.train.num_classes)
        return evaluation.trained(images, targets, data.profile.full, seeds, progress)
    images, targets = (tensor.to(images.device) for tensor in small.training_set())
    return evaluation.trained(images, targets, small.protocol, seeds, progress)


def _told(attack: str, scores: Sequence[np.ndarray], cell: Cell) -> dict[str, Any]:
    """The columns of one attack, from the scores of members and others."""
    rates = [rate for rate in privacy.RATES if len(scores[1]) * rate >= 1]
    found = privacy.leakage(*scores, REPEATS, cell.seed, rates)
    columns = {"attack": attack} | _with_bounds("auc", found.auc, found.auc_interval)
    for rate in privacy.RATES:
        columns |= _with_bounds(f"tpr_{rate:g}", found.tpr.get(rate), found.tpr_intervals.get(rate, (None, None)))
    return columns | {"members": found.members, "others": found.others}


def _with_bounds(name: str, value: float | None, bounds: tuple) -> dict[str, float | None]:
    return {name: value, f"{name}_low": bounds[0], f"{name}_high": bounds[1]}


def readable(found: pd.DataFrame) -> str:
    """What `run` returned as HTML: a table with a row per condition and attack, averaged over seeds, and a folded one
    of every seed where there are several.

    An interval is the t interval over seeds, and that of the bootstrap over images where there is one seed.
    """
    of_condition = ["dataset", "noise", "method", "ipc", "attack"]
    means, folded = _told_by(found, of_condition), ""
    if means["seeds"].max() > 1:
        each = _told_by(found, [*of_condition, "seed"]).drop(columns="seeds")
        folded = f"<details><summary>Every seed, with bootstrap intervals</summary>{_html(each)}</details>"
    return _html(means) + folded


def _html(table: pd.DataFrame) -> str:
    return table.to_html(index=False, border=0)


def _told_by(found: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """A row per group: AUC and the shares of members found, with intervals, as text."""
    rows = []
    for key, group in found.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True)) | {"AUC": _with_interval(group, "auc", ".3f")}
        for rate in privacy.RATES:
            row[f"found at {rate:.1%} false alarms"] = _with_interval(group, f"tpr_{rate:g}", ".1%")
        rows.append(row | {name: group[name].min() for name in ("members", "others")} | {"seeds": len(group)})
    return pd.DataFrame(rows)


def _with_interval(group: pd.DataFrame, name: str, form: str) -> str:
    values, low, high = (pd.to_numeric(group[f"{name}{end}"]).to_numpy(float) for end in ("", "_low", "_high"))
    if np.isnan(values).any():
        return "too few others"
    bounds = low[0], high[0]
    if len(values) > 1:
        bounds = claims.interval(values, np.zeros(len(values)), np.ptp(values), stats.ttest_rel, claims.LEVEL)
    told = "unknown" if np.isnan(bounds[0]) else f"{bounds[0]:{form}}, {bounds[1]:{form}}"
    return f"{values.mean():{form}} [{told}]"
