"""Claim C6: only synthetic data leaves the house, and it gives away less of who was in the training set."""

from __future__ import annotations

import math

import pandas as pd

from ddlnl.claims._rules import LEVEL, SEEDS, contrast, decide, distillers
from ddlnl.errors import InputError

NEEDED = ("dataset", "noise", "method", "ipc", "seed", "auc")
COLUMNS = (
    "dataset",
    "method",
    "noise",
    "ipc",
    "auc",
    "auc_full",
    "less",
    "low",
    "high",
    "n",
    "unit",
    "rule",
    "verdict",
)


def privacy(figures: pd.DataFrame) -> pd.DataFrame:
    """Whether membership in the training set is harder to infer from students of the distilled set than of the full.

    An attack scores images by how well a network knows them; its AUC is 0.5 where members and others look alike and 1
    where each is told from the other. *less* is the AUC on networks trained on the full noisy set minus that on
    students of the distilled set, in points (hundredths). That the attack fails is not a proof: another attack may do
    better, so this is about one attack.

    The unit is the seed, pairs share it, and the interval is a paired t interval. The claim *holds* where the whole
    interval is above zero, *does not hold* where it is below, and there is *not enough data* otherwise, also with a
    single seed. Each row is a statement by itself.

    Args:
        figures: one row per dataset, noise, method ("full" for the reference), IPC and seed with the column `auc`.

    Returns:
        One row per dataset, method, noise and IPC.

    Raises:
        InputError: a column is missing, or a cell is there twice.
    """
    missing = [name for name in NEEDED if name not in figures]
    if missing:
        raise InputError(f"The figures lack {', '.join(missing)}; they need the columns {', '.join(NEEDED)}.")
    cell = [name for name in NEEDED if name != "auc"]
    if figures.duplicated(cell).any():
        raise InputError(
            "The figures hold two rows of one cell; each dataset, noise, method, IPC and seed may be once."
        )
    full = figures[figures["method"] == "full"]
    found = []
    keys = ["dataset", "method", "noise", "ipc"]
    for key, group in figures[figures["method"].isin(distillers(figures))].groupby(keys, sort=False):
        theirs = full[(full["dataset"] == key[0]) & (full["noise"] == key[2])]
        pair = contrast(theirs, group, "auc", None, [LEVEL])
        ((low, high),) = pair["bounds"]
        numbers = {"auc": pair["b"] / 100, "auc_full": pair["a"] / 100, "less": pair["difference"]}
        numbers |= {"low": low, "high": high, "n": pair["n"], "unit": SEEDS, "rule": "last"}
        found.append(dict(zip(keys, key, strict=True)) | numbers | {"verdict": decide(low, high)})
    return pd.DataFrame(found, columns=list(COLUMNS))


def sentences(verdicts: pd.DataFrame) -> list[tuple[str, str]]:
    """(verdict, sentence) for every row."""
    return [
        (row.verdict, f"{row.dataset}, {row.method}, IPC {row.ipc}, {row.noise.replace(':', ' ')}: {_told(row)}")
        for row in verdicts.itertuples()
    ]


def _told(row: tuple) -> str:
    if math.isnan(row.less):
        return "there is no attack on the full set to compare with"
    bounds = "unknown" if math.isnan(row.low) else f"[{row.low:+.1f}, {row.high:+.1f}]"
    aucs = f"AUC {row.auc:.2f} against {row.auc_full:.2f}"
    how = "stronger" if row.less < 0 else "weaker"
    return f"the attack is {abs(row.less):.1f} points {how} ({aucs}), 95 % interval {bounds}, n = {row.n} seeds"


def readable(verdicts: pd.DataFrame) -> list[pd.DataFrame]:
    """For reading: the AUCs with three digits, the difference in points."""
    return [verdicts.round({"auc": 3, "auc_full": 3, "less": 1, "low": 1, "high": 1})]
