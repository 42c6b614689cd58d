"""Notebooks run by the suite."""

from __future__ import annotations

from pathlib import Path

import papermill

CELL = 1200  # seconds; far more than a cell takes, where a lost answer of the kernel would be waited for forever


def execute(notebook: Path, out: Path, **given: object) -> Path:
    """Run a notebook as `papermill` does; a cell that does not end is a `nbclient` CellTimeoutError."""
    papermill.execute_notebook(notebook, out, given, progress_bar=False, execution_timeout=CELL)
    return out
