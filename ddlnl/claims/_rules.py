"""What all claims share: which records they take, what the units are, how an interval becomes a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from ddlnl.controls import EARLY_STOPPED
from ddlnl.errors import InputError
from ddlnl.methods import CLEANED, CONTROLS, WHOLE

LEVEL = 0.95
HOLDS, FAILS, OPEN = "holds", "does not hold", "not enough data"
SEEDS = "seeds"
STUDENTS = "students, one seed: run-to-run spread not covered"
CELL = ["dataset", "noise", "method", "ipc", "seed"]


def select(table: pd.DataFrame, kind: str = "symmetric", imbalance: str | None = "none") -> pd.DataFrame:
    """The records of clean labels and of one kind of noise, under one imbalance (None: under any).

    `rate` is filled in where a noise has no nominal one: labels of people get the share that is wrong, averaged over
    the records of that noise. Raises `InputError` where records of several profiles are mixed or two records describe
    the same cell: a mean over either would be a number that nobody measured. Also for a table without any record.
    """
    if table.empty:
        raise InputError("The table has no records: run a study first, or name the store that has them.")
    rows = table[(table["noise"] == "clean") | table["noise"].str.startswith(f"{kind}:")]
    if imbalance is not None:
        rows = rows[rows["imbalance"] == imbalance]
    profiles = sorted(rows["profile"].unique())
    if len(profiles) > 1:
        raise InputError(f"The table mixes the profiles {', '.join(profiles)}; select the rows of one profile first.")
    cell = [*CELL, "imbalance"]
    if rows.duplicated(cell).any():
        twice = rows.loc[rows.duplicated(cell), cell].iloc[0]
        raise InputError(f"The table holds two records of the cell {dict(twice)}; each cell may appear once.")
    measured = rows.groupby(["dataset", "noise"])["realised_rate"].transform("mean").round(3)
    return rows.assign(rate=rows["rate"].astype(float).fillna(measured))


def distillers(table: pd.DataFrame) -> list[str]:
    """The methods that distil the noisy set; no control and none that trains on all images or cleans them first; in
    order of appearance."""
    others = {*CONTROLS, *WHOLE, *CLEANED, EARLY_STOPPED}
    return [method for method in table["method"].unique() if method not in others]


def require_reference(rows: pd.DataFrame, reference: str) -> None:
    """Raise `InputError` for a reference that is no control and has no record."""
    if reference not in CONTROLS and reference not in set(rows["method"]):
        known = ", ".join(rows["method"].unique())
        raise InputError(f"The reference {reference!r} is not in the table; it has {known}.")


def against(reference: str) -> str:
    """A reference in words."""
    return "the full noisy set" if reference == "full" else reference


def counted(number: int, unit: str) -> str:
    """A number of units in words, "1 seed" or "3 seeds"."""
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def flips(noises: pd.Series) -> pd.Series:
    """Which of these noises, or kinds of noise, flip a class to one other."""
    return noises.str.match("asymmetric|pairflip")


def headline_rate(rows: pd.DataFrame) -> float:
    """The rate that a headline is about: the highest. For noise that flips a class to one other it is the highest below
    0.5, if there is any: beyond it most labels of a flipped class are wrong, and whoever follows the labels must
    fall."""
    fewer = rows.loc[flips(rows["noise"]) & (rows["rate"] < 0.5), "rate"]
    return (fewer if len(fewer) else rows["rate"]).max()


def headlines(rows: pd.DataFrame, told: Callable[[pd.Series], str]) -> list[tuple[str, str]]:
    """(verdict, sentence) for the largest set of every dataset and method at the rate of `headline_rate`; `told` says
    what follows the names."""
    found = []
    for _, group in rows.groupby(["dataset", "method"]):
        row = group[group["rate"] == headline_rate(group)].nlargest(1, "ipc").iloc[0]
        place = f"{row['dataset']}, {row['method']}, IPC {row['ipc']}, {row['noise'].replace(':', ' ')}"
        found.append((row["verdict"], f"{place}: {told(row)}"))
    return found


def interval(a: np.ndarray, b: np.ndarray, spread: float, test: Callable, level: float) -> tuple[float, float]:
    """The t interval of mean(a) - mean(b), or NaN where `spread` (points) is nil: that is no sign of certainty, but of
    too few units or of accuracies that count too few test images."""
    if min(len(a), len(b)) < 2 or not spread > 1e-9:
        return math.nan, math.nan
    return tuple(test(a, b).confidence_interval(level))


def contrast(
    mine: pd.DataFrame, theirs: pd.DataFrame, mean: str, students: str | None, levels: Sequence[float]
) -> dict:
    """Mean of `mine` minus mean of `theirs` in per cent of the columns' unit, with a t interval for each of `levels`.

    Rows are joined by seed. With at least two seeds in common the interval is over the paired differences of the column
    `mean`; with one, over the lists of students in the column `students` (Welch); without that column it is NaN.
    """
    mine, theirs = mine.set_index("seed"), theirs.set_index("seed")
    seeds = mine.index.intersection(theirs.index)
    if len(seeds) == 1 and students:
        a, b = (100 * np.array(side.at[seeds[0], students]) for side in (mine, theirs))
        spread, test, unit = np.ptp(a) + np.ptp(b), partial(stats.ttest_ind, equal_var=False), STUDENTS
    else:
        a, b = (100 * side.loc[seeds, mean].to_numpy(dtype=float) for side in (mine, theirs))
        spread, test, unit = np.ptp(a - b) if len(seeds) else 0.0, stats.ttest_rel, SEEDS
    means = {"a": a.mean(), "b": b.mean()} if len(seeds) else {"a": math.nan, "b": math.nan}
    bounds = [interval(a, b, spread, test, level) for level in levels]
    return means | {"difference": means["a"] - means["b"], "bounds": bounds, "n": len(a), "n_b": len(b), "unit": unit}


def mean_with_interval(values: Sequence[float], level: float = LEVEL) -> dict:
    """The mean over seeds with its t interval; bounds are NaN with fewer than two values, or where all are equal."""
    values = np.asarray([value for value in values if not math.isnan(value)], dtype=float)
    low, high = interval(values, np.zeros(len(values)), np.ptp(values) if len(values) else 0.0, stats.ttest_rel, level)
    return {"effect": values.mean() if len(values) else math.nan, "low": low, "high": high, "n": len(values)}


def decide(low: float, high: float, threshold: float = 0.0) -> str:
    """*holds* where the whole interval is above the threshold, *does not hold* where it is below, else open."""
    return HOLDS if low > threshold else FAILS if high < threshold else OPEN


def network_of(settings: object) -> str:
    """The network that students of a record were, as `family, depth, width, norm`; "unknown" where it is not told."""
    protocol = (settings.get("student") or settings.get("full") or {}) if isinstance(settings, dict) else {}
    shape = protocol.get("architecture")
    if shape is None and {"depth", "width"} <= protocol.keys():  # RCIG's own ConvNet
        return f"convnet, depth {protocol['depth']}, width {protocol['width']}, no norm"
    if not shape:
        return "unknown"
    if shape["family"] == "resnet18":
        return f"resnet18, width {shape['width']}"
    return f"{shape['family']}, depth {shape['depth']}, width {shape['width']}, {shape['norm']} norm"
