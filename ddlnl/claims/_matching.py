"""What matching adds to where it started: a distilled set against its own initial set, trained on in the same way.

DATM begins with images that an expert agrees with and with soft labels of experts, which is a filter for noise by
itself. A distilled set that only keeps what its initial set had has not cleaned anything by matching.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ddlnl.claims._rules import LEVEL, OPEN, contrast, decide, distillers, select

COLUMNS = ("dataset", "method", "ipc", "rate", "initial", "final", "gain", "low", "high", "n", "unit", "rule")
COLUMNS += ("verdict",)


def matching(table: pd.DataFrame) -> pd.DataFrame:
    """Does matching improve on its own initial set?

    For one dataset, method, IPC and symmetric noise rate, students of the last checkpoint are compared with students of
    iteration 0, both after their last epoch. The unit is the seed where there are at least two (paired t interval over
    the differences of means), else the student (Welch t interval). The gain *holds* where the whole 95 % interval is
    above zero, *does not hold* where it is below, and there is *not enough data* otherwise. Each row is a statement by
    itself.

    Args:
        table: records as `ddlnl.store.table` gives them; cells without a checkpoint at iteration 0, or whose students
            diverged there or at the end, are left out.

    Returns:
        One row per dataset, method, IPC and rate: `initial`, `final` (%), `gain` with `low` and `high` (points), `n`
        units, their `unit` and the `verdict`.

    Raises:
        InputError: the table mixes profiles or repeats a cell.
    """
    rows = select(table)
    rows = rows[rows["method"].isin(distillers(rows))]
    began = rows["checkpoints"].map(lambda names: isinstance(names, list) and names[0] == "iteration-0")
    rows = rows[began.astype(bool)]
    rows = rows[rows["curves"].map(lambda curves: None not in (curves[0], curves[-1])).astype(bool)]
    keys = ["dataset", "method", "ipc", "rate"]
    found = [dict(zip(keys, key, strict=True)) | _gain(group) for key, group in rows.groupby(keys)]
    return pd.DataFrame(found, columns=list(COLUMNS))


def _gain(group: pd.DataFrame) -> dict:
    found = contrast(_students(group, -1), _students(group, 0), "mean", "students", [LEVEL])
    ((low, high),) = found["bounds"]
    means = {"initial": found["b"], "final": found["a"], "gain": found["difference"]}
    units = {"n": found["n"], "unit": found["unit"], "rule": "last"}
    return means | {"low": low, "high": high} | units | {"verdict": decide(low, high)}


def _students(group: pd.DataFrame, checkpoint: int) -> pd.DataFrame:
    """Per record the test accuracies of a checkpoint's students after their last epoch, and their mean."""
    lasts = [[student[-1] for student in curves[checkpoint]["test"]] for curves in group["curves"]]
    return pd.DataFrame({"seed": group["seed"].array, "students": lasts, "mean": [np.mean(one) for one in lasts]})


def sentences(verdicts: pd.DataFrame) -> list[tuple[str, str]]:
    """(verdict, sentence) for the highest rate and the largest set of every dataset and method."""
    if verdicts.empty:
        return [(OPEN, "No distilled set here was also evaluated before its first update.")]
    last = verdicts.sort_values(["rate", "ipc"], kind="stable").groupby(["dataset", "method"]).tail(1)
    return [
        (
            row.verdict,
            f"{row.dataset}, {row.method}, IPC {row.ipc}, noise rate {row.rate:g}: students of the set that it began "
            f"as reach {row.initial:.1f} %, those of the distilled one {row.final:.1f} %: {row.gain:+.1f} points, "
            f"95 % interval {_bounds(row)}, n = {row.n} {row.unit}",
        )
        for row in last.itertuples()
    ]


def _bounds(row: tuple) -> str:
    return "unknown" if math.isnan(row.low) else f"[{row.low:+.1f}, {row.high:+.1f}]"


def readable(verdicts: pd.DataFrame) -> list[pd.DataFrame]:
    """For reading: accuracies in per cent, gains with their sign."""
    units = [f"{count} {unit.split(',')[0]}" for count, unit in zip(verdicts["n"], verdicts["unit"], strict=True)]
    shown = {
        "dataset": verdicts["dataset"],
        "method": verdicts["method"],
        "IPC": verdicts["ipc"],
        "rate": verdicts["rate"].map("{:g}".format),
        "initial (%)": verdicts["initial"].map("{:.1f}".format),
        "final (%)": verdicts["final"].map("{:.1f}".format),
        "gain (points)": verdicts["gain"].map("{:+.1f}".format),
        "95 % interval": [_bounds(row) for row in verdicts.itertuples()],
        "n": units,
        "verdict": verdicts["verdict"],
    }
    return [pd.DataFrame(shown)]
