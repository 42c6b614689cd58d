"""Tables to verdicts: each claim of the study (arXiv 2411.11924) as a rule that is computed, never as prose."""

from __future__ import annotations

import html
import inspect
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from IPython.display import display
from scipy import stats

from ddlnl.errors import InputError
from ddlnl.evaluation import RULES
from ddlnl.methods import CONTROLS

LEVEL = 0.95
HOLDS, FAILS, OPEN = "holds", "does not hold", "not enough data"
SEEDS = "seeds"
STUDENTS = "students, one seed: run-to-run spread not covered"
MIME = "application/vnd.ddlnl.claims+json"
COLUMNS = ("dataset", "method", "rate", "rule", "ipc", "distilled", "full", "difference", "low", "high", "n", "n_full")
COLUMNS += ("unit", "tried", "verdict")


def select(table: pd.DataFrame) -> pd.DataFrame:
    """The records of clean labels and symmetric noise without imbalance.

    Raises `InputError` where records of several profiles are mixed or two records describe the same cell: a mean over
    either would be a number that nobody measured. Also for a table without any record.
    """
    if table.empty:
        raise InputError("The table has no records: run a study first, or name the store that has them.")
    rows = table[(table["noise"] == "clean") | table["noise"].str.startswith("symmetric:")]
    rows = rows[rows["imbalance"] == "none"]
    profiles = sorted(rows["profile"].unique())
    if len(profiles) > 1:
        raise InputError(f"The table mixes the profiles {', '.join(profiles)}; select the rows of one profile first.")
    cell = ["dataset", "noise", "method", "ipc", "seed"]
    if rows.duplicated(cell).any():
        twice = rows.loc[rows.duplicated(cell), cell].iloc[0]
        raise InputError(f"The table holds two records of the cell {dict(twice)}; each cell may appear once.")
    return rows


def distillers(table: pd.DataFrame) -> list[str]:
    """The methods of a table that distil, neither the full set nor a control, in order of appearance."""
    return [method for method in table["method"].unique() if method not in CONTROLS]


def symmetric_noise(table: pd.DataFrame) -> pd.DataFrame:
    """Claim C1: under symmetric label noise a small distilled set beats training on the whole noisy set.

    For one dataset, method and noise rate, every distilled size (IPC) that was run is compared with the full noisy set
    under the same rule for choosing the checkpoint (`last` is the primary one).

    The unit is the seed where at least two seeds are there: a seed fixes the noise draw, so distilled and full set are
    paired by it, and the interval is a paired t interval over the per-seed differences (means over students). With one
    seed the students are the unit (Welch t interval), and the spread between runs is not covered.

    Trying several IPCs and keeping the best is a selection on test data, so each interval is widened for the number of
    IPCs tried (Bonferroni): together they cover with probability 0.95.

    The claim *holds* where some IPC has its whole interval above zero, *does not hold* where every IPC has its whole
    interval below zero, and there is *not enough data* otherwise, also where no spread can be estimated (fewer than two
    units, or all differences equal). The row shows the IPC with the highest lower bound. Rates are separate statements;
    the test set is fixed, so its own sampling error is not in the intervals.

    Args:
        table: records as `ddlnl.store.table` gives them, accuracies as fractions of 1.

    Returns:
        One row per dataset, method, rate and rule: `ipc`; `distilled` and `full` (mean accuracies, %); `difference`,
        `low`, `high` (points); `n` and `n_full` (units on either side) and their `unit`; `tried` (the IPCs compared);
        `verdict`. Numbers that cannot be computed are NaN.

    Raises:
        InputError: the table mixes profiles or repeats a cell.
    """
    rows = select(table)
    full = rows[rows["method"] == "full"]
    distilled = rows[rows["method"].isin(distillers(rows))]
    verdicts = []
    for (dataset, method, rate), group in distilled.groupby(["dataset", "method", "rate"]):
        reference = full[(full["dataset"] == dataset) & (full["rate"] == rate)]
        for rule in RULES:
            place = {"dataset": dataset, "method": method, "rate": rate, "rule": rule}
            verdicts.append(place | _verdict(group, reference, rule))
    return pd.DataFrame(verdicts, columns=list(COLUMNS))


def _verdict(group: pd.DataFrame, reference: pd.DataFrame, rule: str) -> dict:
    ipcs = sorted(group["ipc"].unique())
    level = 1 - (1 - LEVEL) / len(ipcs)
    trials = [{"ipc": ipc} | _compare(group[group["ipc"] == ipc], reference, rule, level) for ipc in ipcs]
    if any(trial["low"] > 0 for trial in trials):
        verdict = HOLDS
    elif all(trial["high"] < 0 for trial in trials):
        verdict = FAILS
    else:
        verdict = OPEN
    strongest = max(trials, key=lambda trial: np.nan_to_num([trial["low"], trial["difference"]], nan=-np.inf).tolist())
    return strongest | {"tried": ", ".join(map(str, ipcs)), "verdict": verdict}


def _compare(distilled: pd.DataFrame, full: pd.DataFrame, rule: str, level: float) -> dict:
    """Distilled minus full set (points) with its t interval; NaN where nothing can be compared."""
    mine, theirs = distilled.set_index("seed"), full.set_index("seed")
    seeds = mine.index.intersection(theirs.index)
    if seeds.empty:
        nothing = dict.fromkeys(("distilled", "full", "difference", "low", "high"), math.nan)
        return nothing | {"n": 0, "n_full": 0, "unit": SEEDS}
    if len(seeds) == 1:
        a, b = (100 * np.array(side.at[seeds[0], f"accuracies_{rule}"]) for side in (mine, theirs))
        low, high = interval(a, b, np.ptp(a) + np.ptp(b), partial(stats.ttest_ind, equal_var=False), level)
        unit = STUDENTS
    else:
        a, b = (100 * side.loc[seeds, f"accuracy_{rule}"].to_numpy() for side in (mine, theirs))
        low, high = interval(a, b, np.ptp(a - b), stats.ttest_rel, level)
        unit = SEEDS
    bounds = {"difference": a.mean() - b.mean(), "low": low, "high": high}
    return {"distilled": a.mean(), "full": b.mean()} | bounds | {"n": len(a), "n_full": len(b), "unit": unit}


def interval(a: np.ndarray, b: np.ndarray, spread: float, test: Callable, level: float) -> tuple[float, float]:
    """The t interval of mean(a) - mean(b), or NaN where `spread` (points) is nil: that is no sign of certainty, but of
    too few units or of accuracies that count too few test images."""
    if min(len(a), len(b)) < 2 or not spread > 1e-9:
        return math.nan, math.nan
    return tuple(test(a, b).confidence_interval(level))


def crossover(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Between which noise rates the claim starts to hold, per dataset, method and rule.

    `holds_from` is the smallest measured rate from which the claim holds at every measured rate; `fails_up_to` is the
    largest rate below it at which the claim does not hold. The crossover lies between the two; NaN where there is none.
    """
    rows = []
    for key, group in verdicts.groupby(["dataset", "method", "rule"]):
        group = group.sort_values("rate")
        holding = (group["verdict"] == HOLDS)[::-1].cummin()
        start = group.loc[holding[holding].index, "rate"].min()
        failing = group.loc[(group["verdict"] == FAILS) & ~(group["rate"] >= start), "rate"]
        rows.append((*key, start, failing.max()))
    return pd.DataFrame(rows, columns=["dataset", "method", "rule", "holds_from", "fails_up_to"])


def headline(verdicts: pd.DataFrame) -> str:
    """The result in one line per dataset and method: numbers of the primary rule, then where the other rules differ."""
    if verdicts.empty:
        return "No distilled set was evaluated, so there is nothing to compare with the full noisy set."
    starts = crossover(verdicts).set_index(["dataset", "method", "rule"])["holds_from"]
    lines = []
    for (dataset, method), group in verdicts[verdicts["rule"] == RULES[0]].groupby(["dataset", "method"]):
        top, start = group.loc[group["rate"].idxmax()], starts[dataset, method]
        others = ", ".join(f"by {_words(rule)} {_from(start[rule])}" for rule in RULES[1:])
        finding = {
            HOLDS: f"beats the full noisy set from symmetric noise {start[RULES[0]]:g} on",
            FAILS: "does not beat the full noisy set even at the highest symmetric noise",
            OPEN: "is not shown to beat the full noisy set at the highest symmetric noise",
        }[top["verdict"]]
        below = group.loc[(group["verdict"] == HOLDS) & (top["verdict"] != HOLDS), "rate"]
        if len(below):
            finding = f"beats the full noisy set at {', '.join(f'{rate:g}' for rate in below)}, but {finding}"
        lines.append(
            f"{dataset}, {method}, IPC {top['tried']}: distilled {finding} ({top['difference']:+.1f} points at "
            f"{top['rate']:g}, 95 % interval {_bounds(top)}), n = {_units(top)}; epoch chosen {others}"
        )
    return "\n".join(lines)


def _from(rate: float) -> str:
    return "at no rate" if math.isnan(rate) else f"from {rate:g} on"


def _words(rule: str) -> str:
    return rule.replace("_", " ")


def _bounds(row: pd.Series) -> str:
    return "unknown" if math.isnan(row["low"]) else f"[{row['low']:+.1f}, {row['high']:+.1f}]"


def _units(row: pd.Series) -> str:
    sides = f"{row['n']}" if row["n"] == row["n_full"] else f"{row['n']} and {row['n_full']}"
    return f"{sides} {row['unit']}"


def show(verdicts: pd.DataFrame) -> None:
    """Display verdicts, crossovers and the rule, and store the verdicts in the notebook for `ddlnl.export.summary`."""
    paragraphs = inspect.getdoc(symmetric_noise).split("Args:")[0].strip().split("\n\n")
    rule = "".join(f"<p>{html.escape(' '.join(text.split()))}</p>" for text in paragraphs)
    line = headline(verdicts)
    head = "".join(f"<p><strong>{html.escape(part)}</strong></p>" for part in line.splitlines())
    tables = (readable(verdicts), crossover(verdicts))
    table = "".join(one.to_html(index=False, border=0, na_rep="no rate") for one in tables)
    bundle = {
        "text/plain": line,
        "text/html": f"{head}{table}<details><summary>How the verdict is computed</summary>{rule}</details>",
        MIME: {"headline": line, "verdicts": verdicts.astype(object).where(verdicts.notna(), None).to_dict("records")},
    }
    display(bundle, raw=True)


def readable(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The verdicts for reading: a row per dataset, method and rate; numbers of the primary rule, verdicts of all."""
    key = ["dataset", "method", "rate"]
    primary = verdicts[verdicts["rule"] == RULES[0]].set_index(key)
    shown = pd.DataFrame(
        {
            f"verdict ({RULES[0]})": primary["verdict"],
            "IPC": primary["ipc"],
            "distilled (%)": primary["distilled"].map("{:.1f}".format),
            "full noisy set (%)": primary["full"].map("{:.1f}".format),
            "difference (points)": primary["difference"].map("{:+.1f}".format),
            "95 % interval": [_bounds(row) for _, row in primary.iterrows()],
            "n": [_units(row).split(",")[0] for _, row in primary.iterrows()],
        }
    )
    for rule in RULES[1:]:
        shown[f"verdict ({_words(rule)})"] = verdicts[verdicts["rule"] == rule].set_index(key)["verdict"]
    return shown.reset_index()
