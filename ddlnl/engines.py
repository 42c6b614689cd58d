"""Where cells are computed: in this process, in several local ones, or on a Slurm cluster through submitit."""

from __future__ import annotations

import concurrent.futures.process
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from ddlnl.cells import Cell, run_cell
from ddlnl.errors import InputError
from ddlnl.methods import check
from ddlnl.store import Store

ENGINES = ("local", "submitit")


def run(
    cells: list[Cell], root: Path, data_dir: str | Path | None, device: str, engine: str, workers: int, progress: bool
) -> None:
    """Compute every cell into the store at `root`; the first failure ends the run and names its cell."""
    check(engine, ENGINES, "engine")
    start = {"local": _processes if workers > 1 else _inline, "submitit": _submitit}[engine]
    with tqdm(total=len(cells), unit="cell", disable=not progress or not cells, file=sys.stderr) as bar:
        for cell in start(cells, root, data_dir, device, workers):
            bar.set_postfix_str(str(cell))
            bar.update()


def _compute(cell: Cell, root: Path, data_dir: str | Path | None, device: str) -> None:
    try:
        run_cell(cell, Store(root), data_dir, device)
    except InputError:
        raise
    except Exception as error:
        raise RuntimeError(f"The cell ({cell}) failed: {error}") from error


def _inline(cells, root, data_dir, device, workers) -> Iterator[Cell]:
    for cell in cells:
        _compute(cell, root, data_dir, device)
        yield cell


def _processes(cells, root, data_dir, device, workers) -> Iterator[Cell]:
    threads = max(1, torch.get_num_threads() // workers)
    # Not fork: torch's threads do not survive it, CUDA refuses it.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(threads,)
    )
    try:
        futures = {pool.submit(_compute, cell, root, data_dir, device): cell for cell in cells}
        for future in concurrent.futures.as_completed(futures):
            future.result()
            yield futures[future]
    except concurrent.futures.process.BrokenProcessPool as error:
        raise RuntimeError("A worker process died, perhaps for lack of memory; fewer workers may help.") from error
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


def _submitit(cells, root, data_dir, device, workers) -> Iterator[Cell]:
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "The engine 'submitit' needs the package submitit; install it with `pip install submitit`."
        ) from error
    executor = submitit.AutoExecutor(folder=root / "submitit")
    executor.update_parameters(slurm_array_parallelism=workers, gpus_per_node=1, timeout_min=24 * 60, name="ddlnl")
    with executor.batch():
        jobs = [executor.submit(_compute, cell, root, data_dir, device) for cell in cells]
    for job, cell in zip(jobs, cells, strict=True):
        job.result()
        yield cell
