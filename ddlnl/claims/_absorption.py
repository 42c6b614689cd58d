"""Claim C2, second half: the pattern of wrong labels comes back in what students predict."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ddlnl import noise
from ddlnl.claims._rules import OPEN, counted, decide, distillers, headlines, mean_with_interval, select
from ddlnl.errors import InputError

THRESHOLD = 0.1  # of the pattern: less is taken for nothing
COLUMNS = ("dataset", "method", "noise", "rate", "ipc", "absorbed", "low", "high", "n", "full", "even", "rule")
COLUMNS += ("verdict",)


def absorbed(
    table: pd.DataFrame, kind: str = "asymmetric", transitions: Mapping[tuple, np.ndarray] | None = None
) -> pd.DataFrame:
    """How much of the pattern of wrong labels comes back in the predictions of students, on test images with clean
    labels.

    Let P be the confusion of a set's students (row c: how often images of class c are predicted as each class) and T
    the transition matrix of the noise. The pairwise share Q[c, k] = P[c, k] / (P[c, c] + P[c, k]), 0 where nothing was
    predicted as either, says how often students take class k where it is between k and the true class c; N is the same
    of T, and Q0 that of the set made from clean labels with the same method, IPC and seed. *absorbed* is the slope of
    Q - Q0 on N with an intercept for each class, sum (Q - Q0) M / sum M M over all entries off the diagonal, where M is
    N minus the mean of its row off the diagonal. It is 1 where the noise moved the choice between the right class and
    the wrong one as far as it did in the labels, and 0 where students follow no flip more than any other confusion.

    The intercept leaves out mistakes that become more frequent for all classes alike, as those of weaker students do.
    Noise whose wrong labels are spread evenly, such as symmetric noise, or any between two classes, has M = 0: there
    is no pattern, and no number. Nor is there one without a set from clean labels. Shares add up only as long as there
    is room: classes that students of clean labels mix up already can be mixed up by little more, so the number is
    rather too small there, and most of all for students who know little.

    The unit is the seed, the interval a t interval over seeds; all students of the last checkpoint after their last
    epoch count. The claim that the pattern is absorbed *holds* where the whole interval is above 0.1, *does not hold*
    where it is below, and there is *not enough data* otherwise, also with one seed, and for records without confusion.
    Each row is a statement by itself. `full` is the same number for the full noisy set.

    Args:
        table: records as `ddlnl.store.table` gives them; `confusion` is (K, K) counts, rows true, columns predicted.
        kind: of the noise.
        transitions: T (K, K) by (dataset, noise, seed); needed for noise without a nominal matrix.

    Returns:
        One row per dataset, method (full and controls too), IPC and noise; `even` where the noise has no pattern.

    Raises:
        InputError: the table mixes profiles or repeats a cell.
    """
    rows = select(table, kind)
    cells = {}
    for cell, group in rows.groupby(["dataset", "method", "ipc"]):
        clean = group[group["noise"] == "clean"].set_index("seed")
        for (rate, spec), noisy in group[group["noise"] != "clean"].groupby(["rate", "noise"]):
            cells[(*cell, spec, rate)] = [_slope(row, clean, transitions or {}) for _, row in noisy.iterrows()]
    found = []
    for (dataset, method, ipc, spec, rate), slopes in cells.items():
        number = mean_with_interval([slope for slope, _ in slopes])
        full = mean_with_interval([slope for slope, _ in cells.get((dataset, "full", 0, spec, rate), [])])["effect"]
        place = {"dataset": dataset, "method": method, "noise": spec, "rate": rate, "ipc": ipc}
        number |= {"absorbed": number["effect"], "full": full, "even": all(even for _, even in slopes), "rule": "last"}
        found.append(place | number | {"verdict": decide(number["low"], number["high"], THRESHOLD)})
    return pd.DataFrame(found, columns=list(COLUMNS))


def _slope(row: pd.Series, clean: pd.DataFrame, transitions: Mapping[tuple, np.ndarray]) -> tuple[float, bool]:
    """The number of one record, NaN where it has none, and whether that is because the noise has no pattern."""
    noisy = rates_of(row)
    matrix = None if noisy is None else _transition(row, len(noisy), transitions)
    if matrix is None:
        return np.nan, False
    share = pairwise(matrix)
    off_diagonal = 1 - np.eye(len(share))
    pattern = (share - share.sum(1, keepdims=True) / (len(share) - 1)) * off_diagonal
    scale = (pattern * pattern).sum()
    if scale < 1e-9:
        return np.nan, True
    before = rates_of(clean.loc[row["seed"]]) if row["seed"] in clean.index else None
    if before is None:
        return np.nan, False
    return float(((pairwise(noisy) - pairwise(before)) * pattern).sum() / scale), False


def pairwise(rates: np.ndarray) -> np.ndarray:
    """(K, K): entry [c, k] is the share of k among what of class c became c or k; 0 on the diagonal and where it is
    0 / 0."""
    either = rates + np.diag(rates)[:, None]
    share = np.divide(rates, either, out=np.zeros_like(either), where=either > 0)
    return share * (1 - np.eye(len(rates)))


def _transition(row: pd.Series, classes: int, transitions: Mapping[tuple, np.ndarray]) -> np.ndarray | None:
    """The nominal matrix of a noise, where it has one: evenly spread labels, once drawn, have a pattern by chance."""
    try:
        return noise.transition_matrix(noise.parse(row["noise"]), row["dataset"], classes)
    except InputError:  # labels of people and instance-dependent noise have no matrix before they are drawn
        return transitions.get((row["dataset"], row["noise"], row["seed"]))


def rates_of(row: pd.Series) -> np.ndarray | None:
    """The `confusion` of a record with rows that sum to one (0 for a class without test images), or None."""
    counts = row.get("confusion")
    if not isinstance(counts, (list, np.ndarray)):
        return None
    counts = np.asarray(counts, dtype=float)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def sentences(verdicts: pd.DataFrame) -> list[tuple[str, str]]:
    """(verdict, sentence) for the largest set of every dataset and distiller at the rate of `headline_rate`."""
    rows = verdicts[verdicts["method"].isin(distillers(verdicts))]
    if rows.empty:
        return [(OPEN, "No distilled set was evaluated under this noise, so there is nothing that it could absorb.")]
    return headlines(rows, _told)


def _told(row: pd.Series) -> str:
    if row["even"]:
        return "the wrong labels are spread evenly, so there is no pattern that students could absorb"
    if np.isnan(row["absorbed"]):
        return "whether the pattern of the noise is in the students' predictions is not in the records"
    bounds = "unknown" if np.isnan(row["low"]) else f"[{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
    beside = "" if np.isnan(row["full"]) else f" (those of the full noisy set {100 * row['full']:.0f} %)"
    share = f"{100 * row['absorbed']:.0f} % of the pattern of the noise{beside}"
    return f"students absorbed {share}, 95 % interval {bounds}, n = {counted(row['n'], 'seed')}"


def readable(verdicts: pd.DataFrame) -> list[pd.DataFrame]:
    """For reading: shares in per cent, and only rows that have a number."""
    rows = verdicts[verdicts["absorbed"].notna()].drop(columns=["rate", "even"])
    numbers = ["absorbed", "low", "high", "full"]
    shown = rows.assign(**(100 * rows[numbers]).round(0))
    return [shown.rename(columns={"absorbed": "absorbed (%)", "full": "full noisy set (%)"})]
