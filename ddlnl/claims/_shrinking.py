"""Claim C2, first half: where wrong labels have a pattern, distilling gains less than where they have none."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ddlnl.claims._rules import OPEN, counted, decide, distillers, headlines, mean_with_interval, select

COLUMNS = ("dataset", "method", "kind", "noise", "rate", "wrong", "ipc", "gain", "gain_symmetric", "change", "low")
COLUMNS += ("high", "n", "rule", "verdict")


def shrinks(table: pd.DataFrame, kind: str = "asymmetric") -> pd.DataFrame:
    """Whether distilling gains less under noise with a pattern than under symmetric noise with as many wrong labels.

    The gain is the test accuracy of students of the distilled set minus that of networks trained on the full noisy set,
    in points, both after their last epoch; it may be negative. `gain` is the one under this noise, `gain_symmetric` the
    one where symmetric noise makes the same share of the labels wrong: on the straight line between the two measured
    shares around it, clean labels among them, with the same method, IPC and seed. *change* is gain minus
    gain_symmetric. There is none where the share lies outside of what was measured, or a side is missing.

    The unit is the seed, all four accuracies share it, and the interval is a t interval over seeds. The claim that the
    benefit shrinks *holds* where the whole interval is below zero, *does not hold* where it is above, and there is *not
    enough data* otherwise, also with one seed. Each row is a statement by itself. Whether any benefit is left is
    another question, which `asymmetric_noise` answers.

    Args:
        table: records as `ddlnl.store.table` gives them, accuracies as fractions of 1; those of symmetric noise too.
        kind: of the noise that has a pattern.

    Returns:
        One row per dataset, method, noise and IPC; `wrong` is the share of the labels that the noise made wrong.

    Raises:
        InputError: the table mixes profiles or repeats a cell.
    """
    measured = _gains(select(table, "symmetric"))
    gains = _gains(select(table, kind))
    found = []
    keys = ["dataset", "method", "noise", "rate", "ipc"]
    for key, group in gains[gains["noise"] != "clean"].groupby(keys):
        place = dict(zip(keys, key, strict=True)) | {"kind": kind, "wrong": group["realised_rate"].mean()}
        same = (measured[["dataset", "method", "ipc"]] == [place["dataset"], place["method"], place["ipc"]]).all(axis=1)
        group = group.assign(symmetric=[_at(row, measured[same]) for row in group.itertuples()])
        both = group.dropna(subset=["gain", "symmetric"])
        change = mean_with_interval(both["gain"] - both["symmetric"])
        numbers = {"gain": both["gain"].mean(), "gain_symmetric": both["symmetric"].mean(), "change": change["effect"]}
        verdict = decide(-change["high"], -change["low"])
        found.append(place | change | numbers | {"rule": "last", "verdict": verdict})
    return pd.DataFrame(found, columns=list(COLUMNS))


def _gains(rows: pd.DataFrame) -> pd.DataFrame:
    """The records of distilled sets that have one of the full noisy set beside them, with the `gain` over it."""
    place = ["dataset", "noise", "seed"]
    full = rows[rows["method"] == "full"].set_index(place)["accuracy_last"].rename("full")
    pairs = rows[rows["method"].isin(distillers(rows))].join(full, on=place, how="inner")
    return pairs.assign(gain=100 * (pairs["accuracy_last"] - pairs["full"]))


def _at(row: tuple, measured: pd.DataFrame) -> float:
    """The gain of the same seed under symmetric noise that makes as many labels wrong; NaN outside of what is known."""
    line = measured[measured["seed"] == row.seed].sort_values("realised_rate")
    if line.empty:
        return math.nan
    return float(np.interp(row.realised_rate, line["realised_rate"], line["gain"], left=math.nan, right=math.nan))


def sentences(verdicts: pd.DataFrame) -> list[tuple[str, str]]:
    """(verdict, sentence) for the largest set of every dataset and distiller at the rate of `headline_rate`."""
    if verdicts.empty:
        return [(OPEN, "No distilled set was evaluated beside the full noisy set under this noise.")]
    return headlines(verdicts, _told)


def _told(row: pd.Series) -> str:
    if math.isnan(row["change"]):
        return "there is no symmetric noise with as many wrong labels to compare with"
    bounds = "unknown" if math.isnan(row["low"]) else f"[{row['low']:+.1f}, {row['high']:+.1f}]"
    how = "less" if row["change"] < 0 else "more"
    return (
        f"distilled minus full noisy set is {row['gain']:+.1f} points, {abs(row['change']):.1f} {how} than under "
        f"symmetric noise with as many wrong labels ({row['gain_symmetric']:+.1f}), 95 % interval of the change "
        f"{bounds}, n = {counted(row['n'], 'seed')}"
    )


def readable(verdicts: pd.DataFrame) -> list[pd.DataFrame]:
    """For reading: points with one digit, and only rows that have a number."""
    rows = verdicts[verdicts["change"].notna()].drop(columns=["kind", "rate"])
    shown = rows.assign(wrong=(100 * rows["wrong"])).round(1)
    names = {
        "wrong": "wrong labels (%)",
        "gain": "gain (points)",
        "gain_symmetric": "gain, symmetric (points)",
        "change": "change (points)",
    }
    return [shown.rename(columns=names)]
