"""Cells, grids and their execution: dataset x noise x method x IPC x seed x profile.

A cell becomes one record in the store. Its steps (experts, distillation checkpoints, evaluations) are kept too, under
keys made of everything they depend on, so a killed study goes on where it stopped and ends with the records it would
have had.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ddlnl import engines, noise, stored_sets
from ddlnl.cells import Cell, cell_key, initial_key, prepare
from ddlnl.distilled import DistilledSet
from ddlnl.errors import InputError
from ddlnl.methods import CONTROLS, DISTILLERS, METHODS, WHOLE, check, check_count, is_whole
from ddlnl.profiles import PROFILES
from ddlnl.store import Store, frame, read_record, shown, table


def grid(
    dataset: str | None = None,
    rates: float | Sequence[float] | None = None,
    methods: str | Sequence[str] = DISTILLERS + CONTROLS,
    ipcs: int | Sequence[int] | None = None,
    seeds: int | None = None,
    profile: str = "demo",
    noises: str | Sequence[str] | None = None,
    imbalance: str = "none",
) -> list[Cell]:
    """All cells of a grid; what is None comes from the profile, and one value stands for a list of it.

    rates are those of symmetric noise; in their place `noises` names any noise (`"asymmetric:0.4"`, `"human:worst"`).
    seeds is how many (0, 1, ...). Raises `InputError` on an unknown name or an impossible number.
    """
    check(profile, PROFILES, "profile")
    chosen = PROFILES[profile]
    methods = [methods] if isinstance(methods, str) else methods
    for method in methods:
        check(method, METHODS, "method")
    seeds = chosen.seeds if seeds is None else seeds
    check_count(seeds, "number of seeds")
    ipcs = chosen.ipcs if ipcs is None else [ipcs] if is_whole(ipcs) else ipcs
    for ipc in ipcs:
        check_count(ipc, "IPC")
    noises = _noises(chosen.rates if rates is None and noises is None else rates, noises)
    sizes = {method: (0,) if method in WHOLE else tuple(dict.fromkeys(ipcs)) for method in methods}
    return [
        Cell(chosen.dataset if dataset is None else dataset, spec, method, ipc, seed, profile, imbalance)
        for spec, seed, method in itertools.product(noises, range(seeds), dict.fromkeys(methods))
        for ipc in sizes[method]
    ]


def _noises(rates: float | Sequence[float] | None, noises: str | Sequence[str] | None) -> list[str]:
    """The names of the noises, each once, from the one of the two that is not None."""
    if rates is not None and noises is not None:
        raise InputError("Give either rates or noises, which can name the noise of a rate R too, as 'symmetric:R'.")
    if isinstance(rates, str):
        raise InputError(
            f"The rates are the text {rates!r}, and they must be one number from 0 to 1 or a list of them."
        )
    if noises is None:
        noises = [f"symmetric:{rate}" for rate in ([rates] if isinstance(rates, (int, float)) else rates)]
    noises = [noises] if isinstance(noises, str) else noises
    return list(dict.fromkeys(str(noise.parse(spec)) for spec in noises))


def run(
    cells: Iterable[Cell],
    store_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    workers: int = 1,
    engine: str = "local",
    progress: bool = True,
    records: str | Path | None = None,
) -> pd.DataFrame:
    """One row per cell, in the order of `cells`; finished cells come from the store, others are computed.

    workers: processes that compute cells side by side. engine: "local", or "slurm" for a cluster (`ddlnl.slurm`). What
    can be refused is refused before the first cell starts, with `InputError`; so is, at its end, a study whose archive
    or store was exchanged while it ran. records: a folder whose records are shown instead (`recorded`), so that nothing
    is computed.
    """
    cells = list(dict.fromkeys(cells))
    if records is not None:
        return recorded(cells, records)
    check_workers(workers)
    engines.check_device(device, engine)
    store = Store(store_dir)
    keys = {cell: cell_key(cell, data_dir) for cell in cells}
    missing = [cell for cell in cells if store.record("cell", keys[cell]) is None]
    for cell in missing:
        prepare(cell, data_dir)
    engines.run(in_order(missing), store.root, data_dir, device, engine, workers, progress)
    return frame(collected("cell", keys, store))


def recorded(cells: Iterable[Cell], folder: str | Path, kind: str = "cell") -> pd.DataFrame:
    """The rows of `ddlnl.store.table(folder, kind)` that are about these cells, with any seed; no data are needed.

    A row is found by what it is about and not by its key, which is made of the data too: the records of this package
    say in `data_hash` what they were computed on. Prints how many of the conditions have no record. Raises `InputError`
    where none has.
    """
    rows, wanted = table(folder, kind), list(dict.fromkeys(map(_condition, cells)))
    places = {condition: place for place, condition in enumerate(wanted)}
    rows["place"] = [places.get(_condition(row)) for row in rows.itertuples()]
    found = rows[rows["place"].notna()]
    if found.empty:
        raise InputError(f"The folder {folder} has no record of kind {kind!r} of these cells; it has to be a store.")
    if missing := len(wanted) - found["place"].nunique():
        print(f"{missing} of the {len(wanted)} conditions of this grid have no record in {folder}.")
    return found.sort_values(["place", "seed"]).drop(columns="place").reset_index(drop=True)


def _condition(cell: Any) -> tuple:
    """What a cell, or a row of a table, is about, except for its seed."""
    return cell.dataset, cell.noise, cell.method, cell.ipc, cell.profile, cell.imbalance


def collected(kind: str, keys: Mapping[Cell, str], store: Store) -> list[dict[str, Any]]:
    """The records of computed cells; raises `InputError` where one is missing after all."""
    found = {cell: shown(read_record, store.record_path(kind, key)) for cell, key in keys.items()}
    if lost := [cell for cell, whole in found.items() if whole is None]:
        raise InputError(
            f"The cell ({lost[0]}) has no record after all: its archive was replaced, or the store {store.root} was "
            "moved or damaged, while the study ran; run it again."
        )
    return [whole["body"] for whole in found.values()]


def check_workers(workers: object) -> None:
    """Raise `InputError` unless it is a possible number of processes."""
    check_count(workers, "number of workers")


def finished(cell: Cell, store_dir: str | Path | None = None, data_dir: str | Path | None = None) -> dict[str, Any]:
    """The record of a cell; raises `InputError` where it has not finished in the store."""
    store = Store(store_dir)
    whole = shown(read_record, store.record_path("cell", cell_key(cell, data_dir)))
    if whole is None:
        raise InputError(f"The cell ({cell}) has not finished in the store {store.root}; run it with study.run first.")
    return whole["body"]


def distilled(cell: Cell, store_dir: str | Path | None = None, data_dir: str | Path | None = None) -> DistilledSet:
    """The set that a finished cell made, its checksum verified; a damaged file is named and counts as missing.

    Raises `InputError` where the cell has not finished, where it makes no set (a method of `WHOLE`), or where the store
    does not have the set any more, and says what to run.
    """
    if cell.method in WHOLE:
        raise InputError(f"The cell ({cell}) trains on all images, so it has no distilled set; name another method.")
    store, key = Store(store_dir), cell_key(cell, data_dir)
    found = stored_sets.read(store, finished(cell, store_dir, data_dir)["parents"]["set"])
    if found is None:
        path = store.record_path("cell", key)
        raise InputError(
            f"The store {store.root} has the record of the cell ({cell}), but not its distilled set; move the record "
            f"{path} away and run the cell again with study.run."
        )
    return found


def initial(cell: Cell, store_dir: str | Path | None = None, data_dir: str | Path | None = None) -> DistilledSet | None:
    """The set of a cell before the first update, or None where the method was not evaluated there or none is stored."""
    return stored_sets.read(Store(store_dir), initial_key(cell_key(cell, data_dir)))


def in_order(cells: list[Cell]) -> list[Cell]:
    """One cell of each noise setting first, so that parallel workers do not wait for the same experts."""
    turns: dict[tuple, int] = {}
    waiting = []
    for cell in cells:
        setting = (cell.dataset, cell.noise, cell.imbalance, cell.seed, cell.profile, cell.method in WHOLE)
        waiting.append((turns.setdefault(setting, 0), cell))
        turns[setting] += 1
    return [cell for _, cell in sorted(waiting, key=lambda pair: pair[0])]
