"""Claim C4: clean but rare samples are lost by the compression."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ddlnl.claims._absorption import rates_of
from ddlnl.claims._rules import (
    OPEN,
    against,
    counted,
    decide,
    distillers,
    mean_with_interval,
    require_reference,
    select,
)
from ddlnl.methods import WHOLE

COLUMNS = ("dataset", "method", "reference", "imbalance", "noise", "ipc", "head", "tail", "gap", "gap_balanced", "lost")
COLUMNS += ("low", "high", "n", "rule", "verdict")


def tails(table: pd.DataFrame, kind: str = "symmetric", reference: str = "full") -> pd.DataFrame:
    """Whether imbalance makes a distilled set lose the classes with few images more than the others.

    The imbalances of the package give the first half of the classes, the head, more images than the second half, the
    tail; test classes stay as they are. `head` and `tail` are the mean differences in accuracy between students of the
    distilled set and those of the reference, over the classes of each half, in points, and `gap` is head minus tail.
    The halves differ without any imbalance too, as some classes are harder to distil than others: `gap_balanced` is the
    same difference between sets made from balanced images, with the same noise, IPC and seed. *lost* is gap minus
    gap_balanced: how much more a distilled set loses in rare classes than in frequent ones because they are rare.

    The reference is the full noisy set unless a control is named, of which the set of the same IPC is taken. The unit
    is the seed, the interval a t interval over seeds; all students of the last checkpoint after their last epoch count.
    The claim *holds* where the whole interval of *lost* is above zero, *does not hold* where it is below, and there is
    *not enough data* otherwise, with a single seed, and for records without `confusion`. Each row is a statement by
    itself.

    Args:
        table: records as `ddlnl.store.table` gives them, also of balanced sets; `confusion` is (K, K) counts, rows
            true, columns predicted.
        kind: of the label noise; clean labels always belong to it.
        reference: "full", or a control or another method.

    Returns:
        One row per dataset, method, imbalance, noise and IPC; its numbers are means over the seeds that have them all.

    Raises:
        InputError: the table mixes profiles or repeats a cell, or the reference is not a method of the table.
    """
    rows = select(table, kind, imbalance=None)
    require_reference(rows, reference)
    pairs = _pairs(rows, reference)
    same = ["dataset", "method", "noise", "ipc", "seed"]
    balanced = pairs[pairs["imbalance"] == "none"].set_index(same)["gap"].rename("gap_balanced")
    skewed = pairs[pairs["imbalance"] != "none"].join(balanced, on=same)
    skewed["lost"] = skewed["gap"] - skewed["gap_balanced"]
    found = []
    keys = ["dataset", "method", "imbalance", "noise", "ipc"]
    for key, group in skewed.groupby(keys, sort=False):
        place = dict(zip(keys, key, strict=True)) | {"reference": reference, "rule": "last"}
        lost = mean_with_interval(group["lost"])
        means = group.dropna(subset="lost")[["head", "tail", "gap", "gap_balanced", "lost"]].mean().to_dict()
        found.append(place | lost | means | {"verdict": decide(lost["low"], lost["high"])})
    return pd.DataFrame(found, columns=list(COLUMNS))


def _pairs(rows: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The records of distilled sets with `head`, `tail` and `gap` against the reference; NaN where one is missing."""
    rows = rows.assign(classes=[_by_class(row) for _, row in rows.iterrows()])
    place = ["dataset", "imbalance", "noise", "seed", *([] if reference in WHOLE else ["ipc"])]
    theirs = rows[rows["method"] == reference].set_index(place)["classes"].rename("theirs")
    pairs = rows[rows["method"].isin(distillers(rows)) & (rows["method"] != reference)].join(theirs, on=place)
    halves = [_halves(mine, other) for mine, other in zip(pairs["classes"], pairs["theirs"], strict=True)]
    pairs[["head", "tail"]] = np.array(halves, dtype=float).reshape(-1, 2)
    return pairs.assign(gap=pairs["head"] - pairs["tail"])


def _by_class(row: pd.Series) -> np.ndarray | None:
    """(K,) accuracy of each class in per cent."""
    rates = rates_of(row)
    return None if rates is None else 100 * np.diag(rates)


def _halves(mine: np.ndarray | None, theirs: np.ndarray | None) -> tuple[float, float]:
    """Mean difference of per-class accuracies (points) over the first and the second half of the classes."""
    if not isinstance(mine, np.ndarray) or not isinstance(theirs, np.ndarray):
        return math.nan, math.nan
    middle = len(mine) // 2
    return (mine - theirs)[:middle].mean(), (mine - theirs)[middle:].mean()


def sentences(verdicts: pd.DataFrame) -> list[tuple[str, str]]:
    """(verdict, sentence) for the strongest imbalance, and under it the largest set, of every distiller and noise."""
    if verdicts.empty:
        return [(OPEN, "No distilled set was made from imbalanced images, so there are no rare classes to lose.")]
    factor = verdicts["imbalance"].str.split(":").str[-1].astype(float)
    rows = verdicts.assign(factor=factor).sort_values(["factor", "ipc"], kind="stable")
    last = rows.groupby(["dataset", "method", "noise"]).tail(1)
    return [(row.verdict, f"{_place(row)}: {_told(row)}") for row in last.itertuples()]


def _place(row: tuple) -> str:
    condition = f"{row.imbalance.replace(':', ' ')}, {row.noise.replace(':', ' ')}"
    return f"{row.dataset}, {row.method}, IPC {row.ipc}, {condition}"


def _told(row: tuple) -> str:
    if math.isnan(row.lost):
        return "the accuracy of single classes, with and without imbalance, is not in the records"
    bounds = "unknown" if math.isnan(row.low) else f"[{row.low:+.1f}, {row.high:+.1f}]"
    how = "less" if row.lost < 0 else "more"
    return (
        f"against {against(row.reference)} imbalance makes rare classes lose {abs(row.lost):.1f} points {how} than "
        f"frequent ones (gap {row.gap:+.1f}, balanced {row.gap_balanced:+.1f}), 95 % interval of the loss {bounds}, "
        f"n = {counted(row.n, 'seed')}"
    )


def readable(verdicts: pd.DataFrame) -> list[pd.DataFrame]:
    """For reading: only rows that have a number, in points."""
    names = {name: f"{name.replace('_', ', ')} (points)" for name in ("head", "tail", "gap", "gap_balanced", "lost")}
    return [verdicts[verdicts["lost"].notna()].round(1).rename(columns=names)]
