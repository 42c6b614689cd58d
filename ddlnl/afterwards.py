"""What is computed from finished cells and kept beside them: records of another kind, at most one per cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddlnl import engines, study
from ddlnl.cells import Cell
from ddlnl.methods import WHOLE
from ddlnl.store import Store


def run(
    kind: str,
    keys: Mapping[Cell, str],
    compute: engines.Compute,
    store: Store,
    data_dir: str | Path | None = None,
    device: str = "auto",
    workers: int = 1,
    engine: str = "local",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """The records of this kind, one per cell of `keys`, in their order; those that are missing are computed.

    compute: a function of a module, which saves the record of a cell; worker processes import it. Raises `InputError`
    before any work where a cell has not finished or the store does not have its set any more, and at the end where an
    archive or the store was exchanged meanwhile.
    """
    study.check_workers(workers)
    engines.check_device(device, engine)
    missing = [cell for cell, key in keys.items() if store.record(kind, key) is None]
    for cell in missing:
        study.finished(cell, store.root, data_dir)
        if cell.method not in WHOLE:
            study.distilled(cell, store.root, data_dir)
    engines.run(study.in_order(missing), store.root, data_dir, device, engine, workers, progress, compute)
    return study.collected(kind, keys, store)
