"""What matching adds to where it started: a distilled set against its own initial set, trained on in the same way.

DATM begins with images that an expert agrees with and with soft labels of experts, which is a filter for noise by
itself. A distilled set that only keeps what its initial set had has not cleaned anything by matching.
"""

from __future__ import annotations

import html
import inspect
from functools import partial

import numpy as np
import pandas as pd
from IPython.display import display
from scipy import stats

from ddlnl.claims import FAILS, HOLDS, LEVEL, OPEN, STUDENTS, distillers, interval, select

COLUMNS = ("dataset", "method", "ipc", "rate", "initial", "final", "gain", "low", "high", "n", "unit", "verdict")
UNSIGNED = {"rate": "{:g}".format, "initial (%)": "{:.1f}".format, "final (%)": "{:.1f}".format}


def matching(table: pd.DataFrame) -> pd.DataFrame:
    """Does matching improve on its own initial set?

    For one dataset, method, IPC and symmetric noise rate, students of the last checkpoint are compared with students of
    iteration 0, both after their last epoch. The unit is the seed where there are at least two (paired t interval over
    the differences of means), else the student (Welch t interval). The gain *holds* where the whole 95 % interval is
    above zero, *does not hold* where it is below, and there is *not enough data* otherwise. Each row is a statement by
    itself.

    Args:
        table: records as `ddlnl.store.table` gives them; cells without a checkpoint at iteration 0, or
            whose students diverged there, are left out.

    Returns:
        One row per dataset, method, IPC and rate: `initial`, `final` (%), `gain` with `low` and `high` (points), `n`
        units, their `unit` and the `verdict`.
    """
    rows = select(table)
    rows = rows[rows["method"].isin(distillers(rows))]
    began = rows["checkpoints"].map(lambda names: isinstance(names, list) and names[0] == "iteration-0")
    rows = rows[began.astype(bool)]
    rows = rows[rows["curves"].map(lambda curves: curves[0] is not None).astype(bool)]
    found = [
        dict(zip(("dataset", "method", "ipc", "rate"), key, strict=True)) | _gain(group)
        for key, group in rows.groupby(["dataset", "method", "ipc", "rate"])
    ]
    return pd.DataFrame(found, columns=list(COLUMNS))


def _gain(group: pd.DataFrame) -> dict:
    before, after = ([_last_epoch(curves[at]) for curves in group["curves"]] for at in (0, -1))
    if len(group) > 1:
        a, b = (np.array([students.mean() for students in side]) for side in (after, before))
        low, high = interval(a, b, np.ptp(a - b), stats.ttest_rel, LEVEL)
        unit = "seeds"
    else:
        (a,), (b,) = after, before
        low, high = interval(a, b, np.ptp(a) + np.ptp(b), partial(stats.ttest_ind, equal_var=False), LEVEL)
        unit = STUDENTS
    verdict = HOLDS if low > 0 else FAILS if high < 0 else OPEN
    means = {"initial": b.mean(), "final": a.mean(), "gain": a.mean() - b.mean()}
    return means | {"low": low, "high": high, "n": len(a), "unit": unit, "verdict": verdict}


def _last_epoch(curves: dict) -> np.ndarray:
    """Test accuracy (%) of every student after its last epoch."""
    return 100 * np.array([student[-1] for student in curves["test"]])


def show(gains: pd.DataFrame) -> None:
    """Display the gains for reading, with the rule."""
    if gains.empty:
        display("No distilled set here was also evaluated before its first update.")
        return
    units = [f"{count} {unit.split(',')[0]}" for count, unit in zip(gains["n"], gains["unit"], strict=True)]
    shown = gains.assign(n=units).drop(columns="unit")
    shown = shown.rename(columns={"initial": "initial (%)", "final": "final (%)", "gain": "gain (points)"})
    paragraph = inspect.getdoc(matching).split("Args:")[0].strip().split("\n\n")[1]
    rule = f"<p>{html.escape(' '.join(paragraph.split()))}</p>"
    table = shown.to_html(index=False, border=0, float_format="{:+.1f}".format, formatters=UNSIGNED, na_rep="unknown")
    details = f"<details><summary>How the verdict is computed</summary>{rule}</details>"
    display({"text/plain": shown.to_string(index=False), "text/html": table + details}, raw=True)
