"""Claim C4: clean but rare samples are lost by the compression."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ddlnl.claims._absorption import rates_of
from ddlnl.claims._rules import decide, distillers, mean_with_interval, select

COLUMNS = ("dataset", "method", "imbalance", "noise", "ipc", "head", "tail", "lost", "low", "high", "n", "rule")
COLUMNS += ("verdict",)


def tails(table: pd.DataFrame, kind: str = "symmetric") -> pd.DataFrame:
    """Whether a distilled set loses the classes with few images more than the others, against the full noisy set.

    The imbalances of the package give the first half of the classes, the head, more images than the second half, the
    tail; test classes stay as they are. `head` and `tail` are the mean differences in accuracy between students of the
    distilled set and networks trained on the full set, over the classes of each half, in points. *lost* is head minus
    tail: how much more the distilled set loses in rare classes than in frequent ones.

    The unit is the seed, the interval a t interval over seeds; all students of the last checkpoint after their last
    epoch count. The claim *holds* where the whole interval of *lost* is above zero, *does not hold* where it is below,
    and there is *not enough data* otherwise, with a single seed, and for records without `confusion`. Each row is a
    statement by itself; rows without imbalance show what the halves differ by for other reasons.

    Args:
        table: records as `ddlnl.store.table` gives them; `confusion` is (K, K) counts, rows true, columns predicted.
        kind: of the label noise; clean labels always belong to it.

    Returns:
        One row per dataset, method, imbalance, noise and IPC.

    Raises:
        InputError: the table mixes profiles or repeats a cell.
    """
    rows = select(table, kind, imbalance=None)
    full = rows[rows["method"] == "full"]
    found = []
    keys = ["dataset", "method", "imbalance", "noise", "ipc"]
    for key, group in rows[rows["method"].isin(distillers(rows))].groupby(keys, sort=False):
        place = dict(zip(keys, key, strict=True))
        theirs = full[(full[["dataset", "imbalance", "noise"]] == [key[0], key[2], key[3]]).all(axis=1)]
        theirs = theirs.set_index("seed")
        halves = [_halves(row, theirs.loc[row["seed"]]) for _, row in group.iterrows() if row["seed"] in theirs.index]
        heads, behind = ([pair[half] for pair in halves] for half in (0, 1))
        lost = mean_with_interval(np.subtract(heads, behind))
        numbers = {name: mean_with_interval(side)["effect"] for name, side in (("head", heads), ("tail", behind))}
        verdict = decide(lost["low"], lost["high"])
        found.append(place | numbers | lost | {"lost": lost["effect"], "rule": "last", "verdict": verdict})
    return pd.DataFrame(found, columns=list(COLUMNS))


def _halves(mine: pd.Series, theirs: pd.Series) -> tuple[float, float]:
    """Mean difference of per-class accuracies (points) over the first and the second half of the classes."""
    pair = [rates_of(row) for row in (mine, theirs)]
    if any(rates is None for rates in pair):
        return math.nan, math.nan
    difference = 100 * (np.diag(pair[0]) - np.diag(pair[1]))
    middle = len(difference) // 2
    return float(difference[:middle].mean()), float(difference[middle:].mean())


def sentences(verdicts: pd.DataFrame) -> list[tuple[str, str]]:
    """(verdict, sentence) for the strongest imbalance, and under it the last noise and IPC, of every distiller."""
    rows = verdicts[verdicts["imbalance"] != "none"]
    factor = rows["imbalance"].str.split(":").str[-1].astype(float)
    last = (
        rows.assign(factor=factor).sort_values(["factor", "ipc"], kind="stable").groupby(["dataset", "method"]).tail(1)
    )
    return [(row.verdict, f"{_place(row)}: {_told(row)}") for row in last.itertuples()]


def _place(row: tuple) -> str:
    condition = f"{row.imbalance.replace(':', ' ')}, {row.noise.replace(':', ' ')}"
    return f"{row.dataset}, {row.method}, IPC {row.ipc}, {condition}"


def _told(row: tuple) -> str:
    if math.isnan(row.lost):
        return "the accuracy of single classes is not in the records"
    bounds = "unknown" if math.isnan(row.low) else f"[{row.low:+.1f}, {row.high:+.1f}]"
    how = "less" if row.lost < 0 else "more"
    return (
        f"against the full noisy set rare classes lose {abs(row.lost):.1f} points {how} than frequent ones, 95 % "
        f"interval of the loss {bounds}, n = {row.n} seeds"
    )


def readable(verdicts: pd.DataFrame) -> list[pd.DataFrame]:
    """For reading: only rows that have a number, in points."""
    names = {"head": "head (points)", "tail": "tail (points)", "lost": "lost (points)"}
    return [verdicts[verdicts["lost"].notna()].round(1).rename(columns=names)]
