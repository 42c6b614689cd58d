"""Faults on purpose: each test counts what it tried, and the table of all counts ends the run.

The whole suite makes a part of the tries; `make faults` (DDLNL_FAULTS=full) makes all of them and writes the table. A
table that is there keeps its other rows, so that DDLNL_FAULTS_TABLE=notebooks/results/faults.json brings those of a few
files up to date. A run in which a promise was broken writes none.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the helpers of the other tests

FULL = os.environ.get("DDLNL_FAULTS") == "full"
COUNTS: dict[str, dict[str, int]] = {}


@pytest.fixture
def tries() -> Callable[[int, int], int]:
    """`tries(quick, full)` is how many to make in this run."""
    return lambda quick, full: full if FULL else quick


@pytest.fixture
def tally() -> Callable[..., None]:
    """`tally(promise, tried=1, kept=1)` adds to the counts of a promise; a test fails by itself where one is broken."""

    def add(promise: str, tried: int = 1, kept: int = 1) -> None:
        counts = COUNTS.setdefault(promise, {"tried": 0, "kept": 0})
        counts["tried"] += tried
        counts["kept"] += kept

    return add


def pytest_terminal_summary(terminalreporter, exitstatus) -> None:
    if not COUNTS:
        return
    terminalreporter.section("faults")
    for promise, counts in COUNTS.items():
        terminalreporter.line(f"{promise}: {counts['kept']} of {counts['tried']}")
    place = os.environ.get("DDLNL_FAULTS_TABLE")
    if place and exitstatus == pytest.ExitCode.OK:
        path = Path(place)
        others = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(others | COUNTS, indent=1) + "\n")
