"""Where cells are computed: in this process, in several local ones, or as jobs of a Slurm cluster.

A process that dies under a cell (killed, out of memory, a lost node) costs a study time and nothing else: another one
goes on from the store. A cell that fails ends the study and is named; where the store could not be written,
the sentence says what to do. A mistake in the code keeps its traceback.
"""

from __future__ import annotations

import concurrent.futures
import errno
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from ddlnl import evaluation, slurm
from ddlnl.cell_run import run_cell
from ddlnl.cells import Cell
from ddlnl.errors import CellFailed, InputError, Unfinished
from ddlnl.methods import check
from ddlnl.store import Store

Compute = Callable[[Cell, Store, str | Path | None, str], None]  # of a cell into a store: data folder, device
ENGINES = ("local", "slurm")
STORE_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no room, or no right to write
ROUNDS = 3  # so many rounds in which processes died and no cell was finished end a study


def run(
    cells: list[Cell],
    root: Path,
    data_dir: str | Path | None,
    device: str,
    engine: str,
    workers: int,
    progress: bool,
    one: Compute | None = None,
) -> None:
    """Compute every cell into the store at `root`; the first failure ends the run and names its cell.

    one: what is computed of a cell, a function of a module; None for the cell itself. Raises `CellFailed` where a cell
    cannot be computed or its processes die again and again, `InputError` where the store cannot be written.
    """
    check(engine, ENGINES, "engine")
    root = root.absolute()
    compute = partial(_compute, root=root, data_dir=data_dir, device=device, one=one or run_cell)
    start = {"local": _pool if workers > 1 else _inline, "slurm": partial(slurm.jobs, root=root, device=device)}[engine]
    with tqdm(total=len(cells), unit="cell", disable=not progress or not cells, file=sys.stderr) as bar:
        for cell in _rounds(cells, partial(start, compute=compute, workers=workers)):
            bar.set_postfix_str(str(cell))
            bar.update()


def check_device(device: str, engine: str) -> None:
    """Raise `InputError` for a device on which an engine cannot compute.

    The machine that submits jobs to a cluster need not have the devices of its nodes: of those the spelling alone is
    checked, and every job checks its own.
    """
    if engine == "slurm":
        evaluation.check_device_elsewhere(device)
    else:
        evaluation.choose_device(device)


def _rounds(cells: list[Cell], start: Callable[[list[Cell]], Iterator[Cell]]) -> Iterator[Cell]:
    """Yield each cell as it is finished; `start` leaves out those whose process died, which begin another round."""
    left, fruitless = list(cells), 0
    while left:
        count = len(left)
        for cell in start(list(left)):
            left.remove(cell)
            yield cell
        fruitless = fruitless + 1 if len(left) == count else 0
        if fruitless == ROUNDS:
            raise CellFailed(
                f"{ROUNDS} times in a row processes died before a cell was finished, perhaps for lack of memory, where "
                'fewer workers help, or because a script starts its study outside `if __name__ == "__main__":`. '
                f"{count} cells are left, among them: {left[0]}."
            )
        if left:
            warnings.warn(
                f"A process died that computed a cell; the {len(left)} cells left go on from the store.", stacklevel=2
            )


def _compute(cell: Cell, root: Path, data_dir: str | Path | None, device: str, one: Compute) -> None:
    try:
        one(cell, Store(root), data_dir, device)
    except InputError:
        raise
    except OSError as error:
        if error.errno not in STORE_FAILS and not str(error.filename).startswith(str(root)):
            raise CellFailed(f"The cell ({cell}) failed: {error}") from error
        raise InputError(
            f"The cell ({cell}) stopped: {error}; what was finished is kept, so run it again when {root} has room and "
            "can be written to, or name another folder as store_dir (or $DDLNL_STORE)."
        ) from error
    except (Unfinished, MemoryError, torch.OutOfMemoryError) as error:
        raise CellFailed(f"The cell ({cell}) failed: {str(error) or 'there is not enough memory.'}") from error
    except Exception as error:
        raise RuntimeError(f"The cell ({cell}) failed: {error}") from error


def _inline(cells: list[Cell], compute: Callable[[Cell], None], workers: int) -> Iterator[Cell]:
    for cell in cells:
        compute(cell)
        yield cell


def _pool(cells: list[Cell], compute: Callable[[Cell], None], workers: int) -> Iterator[Cell]:
    threads = max(1, torch.get_num_threads() // workers)
    # Not fork: torch's threads do not survive it, CUDA refuses it.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(threads,)
    )
    try:
        futures = {pool.submit(compute, cell): cell for cell in cells}
        for future in concurrent.futures.as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenProcessPool:
        return
    finally:
        for worker in list((pool._processes or {}).values()):  # a failure need not wait for the cells under way
            worker.terminate()
        pool.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)  # the parent was killed: do not go on computing unseen

    threading.Thread(target=end_with_parent, daemon=True).start()
