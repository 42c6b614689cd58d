"""Speed of the operators against the eager composition of published code: `python -m ddlnl.bench` prints the table.

Baseline and operator run in one process on the same numbers, alternating within each repetition (who goes first
alternates too), so that what slows the machine slows both. Before anything is timed their results must agree. The C
library keeps freed blocks for both sides (`_allocator`), so the ratio is not about paging.
"""

from __future__ import annotations

import contextlib
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from IPython.display import Markdown, display

from ddlnl import _allocator, _core, evaluation, ops
from ddlnl.bench import _cases, _experts, _matching, _rcig
from ddlnl.bench._cases import Case, Pair
from ddlnl.claims import MIME
from ddlnl.errors import InputError, nearest
from ddlnl.methods import is_whole

CASES = (*_cases.CASES, *_experts.CASES, *_matching.CASES, *_rcig.CASES)
SHORTEST = 0.05  # seconds that one side runs per repetition at least; shorter calls are repeated

# What `run` takes for each profile of the notebooks.
PROFILES: dict[str, dict[str, Any]] = {
    "demo": {"rows": tuple(case.name for case in CASES if not case.slow), "repeats": 3},
    "laptop": {"repeats": 7},
    "paper": {"repeats": 7},
    "paper-uniform": {"repeats": 7},
    "paper-tesla": {"repeats": 7},
}


class Disagreement(AssertionError):
    """The two sides of a case do not compute the same; the message says by how much."""


def run(
    rows: Sequence[str] | None = None,
    repeats: int = 7,
    threads: int | None = None,
    device: str = "cpu",
    scale: float = 1.0,
    report: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Measure the cases whose names start with one of `rows` (None: all), one row each.

    Args:
        repeats: pairs of measurements per row. threads: of torch (None: as they are). device: "cpu", "cuda" or "auto".
        scale: below 1 shrinks every size; such ratios say nothing about the targets. report: called with every row,
            a table of its own, as soon as it is measured.

    Returns: `name`, `about`; `baseline_ms` and `ours_ms` (medians per call, forward and backward); `ratio`, the median
    over repetitions of baseline / ours, `low` and `high`, the smallest and largest; `target` (NaN: none); `reached`,
    "yes" where `ratio` is at least that, else "no" ("" without a target); `difference` of the results and its
    `tolerance`; `repeats`. `attrs` holds `machine(...)`.

    Raises `InputError` on an unknown row, a wrong number or an unusable device, `Disagreement` where results differ.
    """
    cases, place = _chosen(rows), evaluation.choose_device(device)
    for name, value in (("repeats", repeats), ("threads", 1 if threads is None else threads)):
        if not is_whole(value) or value < 1:
            raise InputError(f"{name} is {value!r}, and it must be a whole number of at least 1.")
    _allocator.keep_freed_blocks()
    records = []
    with _threads(threads):
        for case in cases:
            records.append(_measure(case, place, repeats, scale))
            if report:
                report(pd.DataFrame(records[-1:]))
        table = pd.DataFrame(records)
        table.attrs = machine(place)
    return table


def machine(device: torch.device) -> dict[str, str]:
    """What ran the measurements, in words, by fact."""
    kept = "kept for both sides" if _allocator.keep_freed_blocks() else "as the C library does it"
    return {
        "Processor": _processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "Threads": str(torch.get_num_threads()),
        "Versions": f"python {platform.python_version()}, torch {torch.__version__}",
        "Operators": "compiled" if _core.active(torch.empty(0, device=device)) else "PyTorch twins",
        "Core": ops.backend().reason,
        "Freed memory": kept,
        "Finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor() -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path("/proc/cpuinfo").read_text().split("model name\t: ")[1].splitlines()[0]
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chosen(rows: Sequence[str] | None) -> list[Case]:
    names = [case.name for case in CASES]
    for row in rows or ():
        if not any(name.startswith(row) for name in names):
            raise InputError(f"No row starts with {row!r}; the rows are {', '.join(names)}.{nearest(row, names)}")
    return [case for case in CASES if rows is None or case.name.startswith(tuple(rows))]


def left_out(rows: Sequence[str] | None = None) -> list[Case]:
    """The cases that `run(rows)` does not measure."""
    chosen = _chosen(rows)
    return [case for case in CASES if case not in chosen]


def _measure(case: Case, device: torch.device, repeats: int, scale: float) -> dict[str, Any]:
    pairs = case.build(device, scale)
    difference = max(_difference(pair) for pair in pairs)
    if not difference <= case.tolerance:
        raise Disagreement(
            f"The results of {case.name} differ from the baseline's by {difference:.1e} of their size, more than "
            f"{case.tolerance:g}."
        )
    calls = [[max(1, math.ceil(SHORTEST / _seconds(side, 1, device))) for side in pair] for pair in pairs]
    times = torch.empty(repeats, len(pairs), 2, dtype=torch.float64)
    for repeat in range(repeats):
        for index, pair in enumerate(pairs):
            for side in (0, 1) if repeat % 2 == 0 else (1, 0):
                times[repeat, index, side] = _seconds(pair[side], calls[index][side], device)
    ratios = (times[..., 0] / times[..., 1]).mean(1).tolist()
    baseline, ours = (1000 * times.sum(1).median(0).values).tolist()
    ratio = statistics.median(ratios)
    return {
        "name": case.name,
        "about": case.about,
        "baseline_ms": baseline,
        "ours_ms": ours,
        "ratio": ratio,
        "low": min(ratios),
        "high": max(ratios),
        "target": math.nan if case.target is None else case.target,
        "reached": "" if case.target is None else "yes" if ratio >= case.target else "no",
        "difference": difference,
        "tolerance": case.tolerance,
        "repeats": repeats,
    }


def _difference(pair: Pair) -> float:
    """The largest relative distance between the tensors of a first call of both sides; NaN counts as infinite."""
    distances = [0.0]
    for theirs, mine in zip(pair.baseline(), pair.ours(), strict=True):
        theirs, mine = theirs.detach().double(), mine.detach().double()
        size = theirs.norm().item()
        distances.append((mine - theirs).norm().item() / (size or 1))
    return math.inf if any(map(math.isnan, distances)) else max(distances)


def _seconds(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds per call, by the device's own clock on a GPU."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000 / calls
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


# Showing


SHOWN = {
    "row": "{name}",
    "baseline (ms)": "{baseline_ms:.2f}",
    "ours (ms)": "{ours_ms:.2f}",
    "ratio": "{ratio:.2f}",
    "from": "{low:.2f}",
    "to": "{high:.2f}",
    "target": "{target:g}",
    "reached": "{reached}",
    "difference": "{difference:.0e}",
    "allowed": "{tolerance:.0e}",
}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table for reading: columns `SHOWN`, numbers as text."""
    rows = [{title: form.format_map(row) for title, form in SHOWN.items()} for row in table.to_dict("records")]
    return pd.DataFrame(rows, columns=list(SHOWN)).replace({"target": {"nan": "none"}})


def headline(table: pd.DataFrame) -> str:
    """The result in one sentence."""
    aimed = table[table["target"].notna()]
    missed = aimed.loc[aimed["reached"] == "no", "name"]
    rest = f", not by {', '.join(missed)}" if len(missed) else ""
    where = "{Processor}, threads: {Threads}, operators: {Operators}".format_map(table.attrs)
    return f"{len(aimed) - len(missed)} of {len(aimed)} targets of speed are reached{rest} ({where})"


def show(table: pd.DataFrame) -> None:
    """Display the table and its headline, which `ddlnl.export.summary` finds again."""
    line = headline(table)
    meaning = table[["name", "about"]].rename(columns={"name": "row", "about": "what is computed"})
    shown = "".join(one.to_html(index=False, border=0) for one in (readable(table), meaning))
    bundle = {"text/plain": line, "text/html": f"<p><strong>{line}</strong></p>{shown}", MIME: {"headline": line}}
    display(bundle, raw=True)


def provenance(table: pd.DataFrame) -> Markdown:
    """Where the numbers of the table come from."""
    facts = table.attrs | {"Repetitions": f"{table['repeats'].max()} per row, both sides in each"}
    return Markdown("\n".join(f"* **{fact}:** {text}" for fact, text in facts.items()))
