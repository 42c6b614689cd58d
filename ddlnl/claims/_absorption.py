"""Claim C2, second half: the pattern of wrong labels comes back in what students predict."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ddlnl import noise
from ddlnl.claims._rules import decide, distillers, mean_with_interval, select
from ddlnl.errors import InputError

THRESHOLD = 0.1  # of the noise: less is taken for nothing
COLUMNS = ("dataset", "method", "noise", "rate", "ipc", "absorbed", "low", "high", "n", "full", "rule", "verdict")


def absorbed(
    table: pd.DataFrame, kind: str = "asymmetric", transitions: Mapping[tuple, np.ndarray] | None = None
) -> pd.DataFrame:
    """What share of the label noise comes back in the predictions of students, on test images with clean labels.

    With P the confusion of a set's students (row c: how often images of class c are predicted as each class), P0 the
    same for the set made from clean labels with the same method, IPC and seed, and T the transition matrix of the
    noise, *absorbed* is sum (P - P0) T / sum T T, both sums over all entries off the diagonal. It is the slope of the
    errors that the noise added on the wrong labels that it made: 1 where students make the mistakes of the labels as
    often as the labels do, 0 where the noise left no trace of its pattern. Without a set from clean labels there is no
    P0 and no number.

    The unit is the seed, the interval a t interval over seeds; all students of the last checkpoint after their last
    epoch count. The claim that the noise is absorbed *holds* where the whole interval is above 0.1, *does not hold*
    where it is below, and there is *not enough data* otherwise, also with one seed, and for records without confusion.
    Each row is a statement by itself. `full` is the same number for the full noisy set.

    Args:
        table: records as `ddlnl.store.table` gives them; `confusion` is (K, K) counts, rows true, columns predicted.
        kind: of the noise.
        transitions: T (K, K) by (dataset, noise, seed); needed for noise without a nominal matrix.

    Returns:
        One row per dataset, method (full and controls too), IPC and noise.

    Raises:
        InputError: the table mixes profiles or repeats a cell.
    """
    rows = select(table, kind)
    shares = {}
    for cell, group in rows.groupby(["dataset", "method", "ipc"]):
        clean = group[group["noise"] == "clean"].set_index("seed")
        for (rate, spec), noisy in group[group["noise"] != "clean"].groupby(["rate", "noise"]):
            shares[(*cell, spec, rate)] = [_share(row, clean, transitions or {}) for _, row in noisy.iterrows()]
    found = []
    for (dataset, method, ipc, spec, rate), values in shares.items():
        number = mean_with_interval(values)
        full = mean_with_interval(shares.get((dataset, "full", 0, spec, rate), []))["effect"]
        place = {"dataset": dataset, "method": method, "noise": spec, "rate": rate, "ipc": ipc}
        verdict = decide(number["low"], number["high"], THRESHOLD)
        found.append(place | number | {"absorbed": number["effect"], "full": full, "rule": "last", "verdict": verdict})
    return pd.DataFrame(found, columns=list(COLUMNS))


def _share(row: pd.Series, clean: pd.DataFrame, transitions: Mapping[tuple, np.ndarray]) -> float:
    if row["seed"] not in clean.index:
        return np.nan
    noisy, before = rates_of(row), rates_of(clean.loc[row["seed"]])
    if noisy is None or before is None:
        return np.nan
    matrix = transitions.get((row["dataset"], row["noise"], row["seed"]))
    if matrix is None:
        matrix = _nominal(row["noise"], row["dataset"], len(noisy))
    if matrix is None:
        return np.nan
    wrong = matrix * (1 - np.eye(len(matrix)))
    return float(((noisy - before) * wrong).sum() / (wrong * wrong).sum())


def _nominal(spec: str, dataset: str, classes: int) -> np.ndarray | None:
    try:
        return noise.transition_matrix(noise.parse(spec), dataset, classes)
    except InputError:  # labels of people and instance-dependent noise have no matrix before they are drawn
        return None


def rates_of(row: pd.Series) -> np.ndarray | None:
    """The `confusion` of a record with rows that sum to one (0 for a class without test images), or None."""
    counts = row.get("confusion")
    if not isinstance(counts, (list, np.ndarray)):
        return None
    counts = np.asarray(counts, dtype=float)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def sentences(verdicts: pd.DataFrame) -> list[tuple[str, str]]:
    """(verdict, sentence) for the highest rate and the largest set of every dataset and distiller."""
    rows = verdicts[verdicts["method"].isin(distillers(verdicts))].sort_values(["rate", "ipc"], kind="stable")
    last = rows.groupby(["dataset", "method"]).tail(1)
    return [
        (row.verdict, f"{row.dataset}, {row.method}, IPC {row.ipc}, {row.noise.replace(':', ' ')}: {_told(row)}")
        for row in last.itertuples()
    ]


def _told(row: tuple) -> str:
    if np.isnan(row.absorbed):
        return "whether the pattern of the noise is in the students' predictions is not in the records"
    bounds = "unknown" if np.isnan(row.low) else f"[{100 * row.low:.0f}, {100 * row.high:.0f}]"
    return f"students absorbed {100 * row.absorbed:.0f} % of the noise, 95 % interval {bounds}, n = {row.n} seeds"


def readable(verdicts: pd.DataFrame) -> list[pd.DataFrame]:
    """For reading: shares in per cent, and only rows that have a number."""
    rows = verdicts[verdicts["absorbed"].notna()].drop(columns="rate")
    numbers = ["absorbed", "low", "high", "full"]
    shown = rows.assign(**(100 * rows[numbers]).round(0))
    return [shown.rename(columns={"absorbed": "absorbed (%)", "full": "full noisy set (%)"})]
