"""Claim C5: training on the distilled set is cheaper, and distilling pays after so many trainings."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ddlnl.claims._rules import OPEN, counted, decide, distillers, mean_with_interval, select

COLUMNS = ("dataset", "method", "ipc", "distil", "train", "train_full", "speedup", "low", "high", "n")
COLUMNS += ("break_even", "break_even_low", "break_even_high", "rule", "verdict")


def costs(table: pd.DataFrame, kind: str = "symmetric") -> pd.DataFrame:
    """Seconds to distil and to train one network on the result, against training one on the full noisy set.

    `distil` is the time of the experts and of the distillation. `train` is the time of the evaluations divided by the
    networks that they trained, at every checkpoint; networks are trained side by side, on both sides alike. Tests on
    the way are not counted: the full set has more test points than a small one. Nor is RCIG's second run of students,
    without augmentation. *speedup* is train_full / train. `break_even` is the number of trainings after which
    distilling has paid, distil / (train_full - train), rounded up; infinite where training on the small set saves
    nothing.

    The unit is the seed and noise rate, of which every pair was computed with the same device and number of threads;
    others are left out, and so are records of before these times were kept apart (in `seconds_beside`). `speedup` is a
    geometric mean, its interval a t interval of the logarithms, and the break-even number is that of the mean seconds,
    with the smallest and the largest over the units around it. The claim *holds* where the whole interval of the
    speedup is above 1, *does not hold* where it is below, and there is *not enough data* otherwise, also with a single
    unit.

    Args:
        table: records as `ddlnl.store.table` gives them.
        kind: of the label noise; clean labels always belong to it.

    Returns:
        One row per dataset, method and IPC.

    Raises:
        InputError: the table mixes profiles or repeats a cell.
    """
    rows = _apart(select(table, kind))
    rows = rows.assign(train=_seconds_of_training(rows), distil=rows["seconds_experts"] + rows["seconds_distil"])
    unit = ["dataset", "noise", "seed", "device", "threads"]
    full = rows.loc[rows["method"] == "full", [*unit, "train"]].rename(columns={"train": "train_full"})
    pairs = rows[rows["method"].isin(distillers(rows))].merge(full, on=unit)
    keys = ["dataset", "method", "ipc"]
    found = [dict(zip(keys, key, strict=True)) | _cost(group) for key, group in pairs.groupby(keys, sort=False)]
    return pd.DataFrame(found, columns=list(COLUMNS))


def _apart(rows: pd.DataFrame) -> pd.DataFrame:
    """The records whose `seconds_evaluate` are those of training alone."""
    return rows[rows["seconds_beside"].notna()] if "seconds_beside" in rows else rows.head(0)


def _seconds_of_training(rows: pd.DataFrame) -> pd.Series:
    return rows["seconds_evaluate"] / (rows["students"] * rows["checkpoints"].map(len))


def _cost(group: pd.DataFrame) -> dict:
    speed = mean_with_interval(np.log(group["train_full"] / group["train"]))
    each = [break_even(*seconds) for seconds in group[["distil", "train", "train_full"]].to_numpy()]
    means = group[["distil", "train", "train_full"]].mean()
    found = means.to_dict() | {"speedup": math.exp(speed["effect"]), "n": speed["n"], "rule": "mean seconds"}
    found |= {bound: math.exp(speed[bound]) for bound in ("low", "high")}
    found |= {"break_even": break_even(*means), "break_even_low": min(each), "break_even_high": max(each)}
    return found | {"verdict": decide(speed["low"], speed["high"])}


def break_even(distil: float, train: float, train_full: float) -> float:
    """After how many trainings distilling has paid; infinite where a training saves nothing."""
    return math.ceil(distil / (train_full - train)) if train_full > train else math.inf


def sentences(verdicts: pd.DataFrame) -> list[tuple[str, str]]:
    """(verdict, sentence) for every row; one where there is none."""
    if verdicts.empty:
        return [(OPEN, "The records do not tell what training on a distilled set and on the full noisy set took.")]
    return [(row.verdict, f"{row.dataset}, {row.method}, IPC {row.ipc}: {_told(row)}") for row in verdicts.itertuples()]


def _told(row: tuple) -> str:
    bounds = "unknown" if math.isnan(row.low) else f"[{row.low:.1f}, {row.high:.1f}]"
    pays = "never pays" if math.isinf(row.break_even) else f"pays after {counted(round(row.break_even), 'training')}"
    return f"training is {row.speedup:.1f} times faster, 95 % interval {bounds}, n = {row.n}; distilling {pays}"


def readable(verdicts: pd.DataFrame) -> list[pd.DataFrame]:
    """For reading: seconds and ratios."""
    names = {
        "distil": "distil (s)",
        "train": "train (s)",
        "train_full": "train, full set (s)",
        "speedup": "times faster",
    }
    return [verdicts.round(2).rename(columns=names)]
