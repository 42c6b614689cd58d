"""Distilled sets against another training set, as a rule the full noisy set: claim C1, and what C2 and C3 build on."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ddlnl.claims._rules import (
    FAILS,
    HOLDS,
    LEVEL,
    OPEN,
    against,
    contrast,
    distillers,
    flips,
    headline_rate,
    network_of,
    require_reference,
    select,
)
from ddlnl.evaluation import RULES

COLUMNS = ("dataset", "method", "reference", "kind", "noise", "rate", "rule", "network", "ipc", "distilled", "full")
COLUMNS += ("difference", "low", "high", "n", "n_full", "unit", "tried", "best", "floor", "ceiling", "verdict")
ANSWERS = {HOLDS: "yes", FAILS: "no", OPEN: OPEN}  # to whether the set beats the reference


def symmetric_noise(table: pd.DataFrame) -> pd.DataFrame:
    """Claim C1: under symmetric label noise a small distilled set beats training on the whole noisy set; `versus`."""
    return versus(table, "symmetric")


def asymmetric_noise(table: pd.DataFrame, kind: str = "asymmetric") -> pd.DataFrame:
    """Beside claim C2: whether a distilled set still beats the whole noisy set where classes are flipped to one other.

    The paper says that the benefit shrinks or vanishes, which `shrinks` decides. See `versus`; kind is one of the
    variants of asymmetric noise.
    """
    return versus(table, kind)


def natural_noise(table: pd.DataFrame, kind: str = "human") -> pd.DataFrame:
    """Claim C3, set by set: whether a distilled set beats the whole set under labels of people ("human") or "instance".

    See `versus`; `trend` makes one verdict of the rows.
    """
    return versus(table, kind)


def versus(
    table: pd.DataFrame, kind: str = "symmetric", reference: str = "full", imbalance: str = "none"
) -> pd.DataFrame:
    """A small distilled set against the reference, which is the whole noisy set unless another method is named.

    For one dataset, method and noise, every distilled size (IPC) that was run is compared with the reference under the
    same rule for choosing the checkpoint (`last` is the primary one). A reference other than the full noisy set has the
    same IPC.

    The unit is the seed where at least two seeds are there: a seed fixes the noise draw, so both sides are paired by
    it, and the interval is a paired t interval over the per-seed differences (means over students). With one seed the
    students are the unit (Welch t interval), and the spread between runs is not covered.

    Trying several IPCs and keeping the best is a selection on test data, so each interval is widened for the number of
    IPCs tried (Bonferroni): together they cover with probability 0.95.

    The claim *holds* where some IPC has its whole interval above zero, *does not hold* where every IPC has its whole
    interval below zero, and there is *not enough data* otherwise, also where no spread can be estimated (fewer than two
    units, or all differences equal). The row shows the IPC with the highest lower bound. Rates are separate statements;
    the test set is fixed, so its own sampling error is not in the intervals. Under noise that flips classes, where the
    paper claims no benefit, the verdict is told as the answer to whether the set beats the reference: yes or no.

    Args:
        table: records as `ddlnl.store.table` gives them, accuracies as fractions of 1.
        kind: of the noise ("symmetric", "asymmetric", "human", ...); clean labels always belong to it.
        reference: "full", or a control or another method.
        imbalance: of the records that are compared.

    Returns:
        One row per dataset, method, noise and rule: `network` of the students; `ipc`; `distilled` and `full` (mean
        accuracies of both sides, %); `difference`, `low`, `high` (points); `n` and `n_full` (units on either side) and
        their `unit`; `tried` (the IPCs compared); `verdict`. For `crossover`: `best`, the largest difference, and
        `floor` and `ceiling`, bounds of it that hold for all rates together. Numbers that cannot be computed are NaN.

    Raises:
        InputError: the table mixes profiles or repeats a cell, or the reference is not a method of the table.
    """
    rows = select(table, kind, imbalance)
    require_reference(rows, reference)
    others = rows[rows["method"] == reference]
    mine = rows[rows["method"].isin(distillers(rows)) & (rows["method"] != reference)]
    verdicts = []
    for (dataset, method), of_method in mine.groupby(["dataset", "method"]):
        for (rate, noise), group in of_method.groupby(["rate", "noise"]):
            theirs = others[(others["dataset"] == dataset) & (others["noise"] == noise)]
            place = {"dataset": dataset, "method": method, "reference": reference, "kind": kind}
            place |= {"noise": noise, "rate": rate, "network": _networks(group)}
            rates = of_method["noise"].nunique()
            verdicts += [place | {"rule": rule} | _verdict(group, theirs, rule, rates) for rule in RULES]
    return pd.DataFrame(verdicts, columns=list(COLUMNS))


def _networks(rows: pd.DataFrame) -> str:
    found = {network_of(settings) for settings in rows["settings"]} if "settings" in rows else {"unknown"}
    return " or ".join(sorted(found))


def _verdict(group: pd.DataFrame, reference: pd.DataFrame, rule: str, rates: int) -> dict:
    ipcs = sorted(group["ipc"].unique())
    levels = [1 - (1 - LEVEL) / len(ipcs), 1 - (1 - LEVEL) / (len(ipcs) * rates)]
    trials = []
    for ipc in ipcs:
        theirs = reference[reference["ipc"].isin([0, ipc])]
        trials.append({"ipc": ipc} | _compare(group[group["ipc"] == ipc], theirs, rule, levels))
    if any(trial["low"] > 0 for trial in trials):
        verdict = HOLDS
    elif all(trial["high"] < 0 for trial in trials):
        verdict = FAILS
    else:
        verdict = OPEN
    strongest = max(trials, key=lambda trial: np.nan_to_num([trial["low"], trial["difference"]], nan=-np.inf).tolist())
    together = {  # the best IPC's true difference is above every IPC's lower bound and below the largest upper one
        "best": np.max([trial["difference"] for trial in trials]),
        "floor": np.max(np.nan_to_num([trial["floor"] for trial in trials], nan=-np.inf)),
        "ceiling": np.max(np.nan_to_num([trial["ceiling"] for trial in trials], nan=np.inf)),
    }
    return strongest | together | {"tried": ", ".join(map(str, ipcs)), "verdict": verdict}


def _compare(distilled: pd.DataFrame, full: pd.DataFrame, rule: str, levels: list[float]) -> dict:
    """Distilled minus reference (points) with its t intervals; NaN where nothing can be compared."""
    found = contrast(distilled, full, f"accuracy_{rule}", f"accuracies_{rule}", levels)
    (low, high), (floor, ceiling) = found["bounds"]
    numbers = {"distilled": found["a"], "full": found["b"], "difference": found["difference"]}
    numbers |= {"low": low, "high": high, "floor": floor, "ceiling": ceiling}
    return numbers | {"n": found["n"], "n_full": found["n_b"], "unit": found["unit"]}


def crossover(verdicts: pd.DataFrame) -> pd.DataFrame:
    """From which noise rate on the claim holds, per dataset, method, network and rule.

    `holds_from` is the smallest measured rate from which the claim holds at every measured rate; `fails_up_to` is the
    largest rate below it at which the claim does not hold. NaN where there is none.

    `crossover` estimates the rate at which the difference of the best IPC turns positive for good, on the straight
    lines between measured rates: the smallest measured rate where it always is, NaN where it is not at the last one.
    `low` and `high` enclose it with probability 0.95: the rates where the upper and the lower bound of the difference
    do so, widened for all IPCs and rates. A `low` of 0 says that it may be positive everywhere; a `high` of NaN that it
    may not turn positive at any rate that was measured.
    """
    rows = []
    for key, unsorted in verdicts.groupby(["dataset", "method", "network", "rule"]):
        group = unsorted.sort_values("rate")
        rates = group["rate"].to_numpy()
        holding = (group["verdict"] == HOLDS)[::-1].cummin()
        start = group.loc[holding[holding].index, "rate"].min()
        failing = group.loc[(group["verdict"] == FAILS) & ~(group["rate"] >= start), "rate"]
        low, high = (turns_positive(rates, group[bound].to_numpy()) for bound in ("ceiling", "floor"))
        low = rates[-1] if math.isnan(low) else low if low > rates[0] else 0.0
        best = turns_positive(rates, np.nan_to_num(group["best"].to_numpy(), nan=-np.inf))
        rows.append((*key, start, failing.max(), best, low, high))
    columns = ["dataset", "method", "network", "rule", "holds_from", "fails_up_to", "crossover", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def turns_positive(rates: np.ndarray, values: np.ndarray) -> float:
    """Where values over ascending rates turn positive for good, on straight lines; the first rate where they always
    are, NaN where the last one is not. An infinite value stands for an unknown one."""
    negative = np.flatnonzero(values <= 0)
    if not negative.size:
        return float(rates[0])
    last = negative[-1]
    if last == len(rates) - 1:
        return math.nan
    before, after = values[last], values[last + 1]
    share = 1.0 if np.isneginf(before) else 0.0 if np.isposinf(after) else -before / (after - before)
    return float(rates[last] + share * (rates[last + 1] - rates[last]))


def sentences(verdicts: pd.DataFrame) -> list[tuple[str | None, str]]:
    """(verdict, sentence) per dataset and method at the rate of `headline_rate`: numbers of the primary rule, then
    where the other rules differ. Under noise that flips classes there is an answer instead of a verdict."""
    if verdicts.empty:
        return [(OPEN, "No distilled set was evaluated, so there is nothing to compare with the full noisy set.")]
    starts = crossover(verdicts).groupby(["dataset", "method", "rule"])["holds_from"].min()
    found = []
    for (dataset, method), every in verdicts.groupby(["dataset", "method"]):
        group = every[every["rule"] == RULES[0]]
        top = group[group["rate"] == headline_rate(group)].iloc[0]
        if flips(verdicts["kind"]).all():
            others = every[every["noise"] == top["noise"]].set_index("rule")["verdict"].map(ANSWERS)
            told, verdict = _answer(top, others), None
        else:
            told, verdict = _finding(top, group, starts[dataset, method]), top["verdict"]
        students = ", ResNet-18 students" if top["network"].startswith("resnet18") else ""
        found.append((verdict, f"{dataset}, {method}{students}: {told}"))
    return found


def _answer(top: pd.Series, others: pd.Series) -> str:
    question = f"beats {against(top['reference'])} under {top['noise'].replace(':', ' ')} noise"
    rules = ", ".join(f"by {_words(rule)}: {others[rule]}" for rule in RULES[1:])
    return f"{question}: {ANSWERS[top['verdict']]} ({_numbers(top)}); epoch chosen {rules}"


def _finding(top: pd.Series, group: pd.DataFrame, start: pd.Series) -> str:
    others = ", ".join(f"by {_words(rule)} {_from(start[rule])}" for rule in RULES[1:])
    reference, rate = against(top["reference"]), top["rate"]
    finding = {
        HOLDS: f"beats {reference} from {top['kind']} noise {start[RULES[0]]:g} on",
        FAILS: f"does not beat {reference} even at the highest {top['kind']} noise",
        OPEN: f"is not shown to beat {reference} at the highest {top['kind']} noise",
    }[top["verdict"]]
    below = group.loc[(group["verdict"] == HOLDS) & (top["verdict"] != HOLDS), "rate"]
    if len(below):
        finding = f"beats {reference} at {', '.join(f'{rate:g}' for rate in below)}, but {finding}"
    return f"distilled {finding} (at {rate:g} {_numbers(top)}); epoch chosen {others}"


def _numbers(row: pd.Series) -> str:
    """The difference with its IPC, the interval, the units, and what else was tried."""
    tried = f"; tried: IPC {row['tried']}" if "," in row["tried"] else ""
    numbers = f"IPC {row['ipc']}: {row['difference']:+.1f} points, 95 % interval {_bounds(row)}"
    return f"{numbers}, n = {_units(row)}{tried}"


def _from(rate: float) -> str:
    return "at no rate" if math.isnan(rate) else f"from {rate:g} on"


def _words(rule: str) -> str:
    return rule.replace("_", " ")


def _bounds(row: pd.Series) -> str:
    return "unknown" if math.isnan(row["low"]) else f"[{row['low']:+.1f}, {row['high']:+.1f}]"


def _units(row: pd.Series) -> str:
    sides = f"{row['n']}" if row["n"] == row["n_full"] else f"{row['n']} and {row['n_full']}"
    return f"{sides} {row['unit']}"


def readable(verdicts: pd.DataFrame) -> list[pd.DataFrame]:
    """For reading: a row per dataset, method and noise, with numbers of the primary rule and verdicts of all; then the
    crossovers."""
    key = ["dataset", "method", "noise", "rate"]
    primary = verdicts[verdicts["rule"] == RULES[0]].set_index(key)
    reference = "full noisy set" if set(primary["reference"]) <= {"full"} else "reference"
    neutral = flips(verdicts["kind"]).all()
    verdict = f"beats the {reference}" if neutral else "verdict"
    told = ANSWERS if neutral else {one: one for one in ANSWERS}
    shown = pd.DataFrame(
        {
            f"{verdict} ({RULES[0]})": primary["verdict"].map(told),
            "IPC": primary["ipc"],
            "distilled (%)": primary["distilled"].map("{:.1f}".format),
            f"{reference} (%)": primary["full"].map("{:.1f}".format),
            "difference (points)": primary["difference"].map("{:+.1f}".format),
            "95 % interval": [_bounds(row) for _, row in primary.iterrows()],
            "n": [_units(row).split(",")[0] for _, row in primary.iterrows()],
        }
    )
    for rule in RULES[1:]:
        shown[f"{verdict} ({_words(rule)})"] = verdicts[verdicts["rule"] == rule].set_index(key)["verdict"].map(told)
    starts = crossover(verdicts)
    starts = starts if starts["network"].nunique() > 1 else starts.drop(columns="network")
    named = primary.reset_index()["noise"].str.contains("human:").any()  # else the rate says it
    return [shown.reset_index().drop(columns=[] if named else "noise"), starts.round(3)]
