"""Cells as jobs of a Slurm cluster, through submitit: one array, one job per cell.

A job that is preempted or runs out of time queues itself again and goes on from the store. What else a cluster asks for
(partition, account, another time limit) sbatch reads from $SBATCH_PARTITION, $SBATCH_ACCOUNT, $SBATCH_TIMELIMIT.
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddlnl.cells import Cell
from ddlnl.errors import InputError, Unfinished

CLUSTER = "slurm"  # the executor of submitit; its "local" runs the same jobs as processes of this machine
MINUTES = 24 * 60
CPUS_BESIDE_GPU = 4


@dataclass(frozen=True)
class Job:
    """A cell to compute; submitit pickles it for the node."""

    compute: Callable[[Cell], None]
    cell: Cell

    def __call__(self) -> Exception | None:
        """What refused or ended the cell comes back as it is; of what is raised, submitit keeps the text alone."""
        try:
            self.compute(self.cell)
        except (InputError, Unfinished) as error:
            traceback.print_exc()  # into the log of the job
            return error
        return None

    def checkpoint(self) -> Any:
        """What submitit queues in place of this job before Slurm ends it."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def jobs(cells: list[Cell], compute: Callable[[Cell], None], workers: int, root: Path, device: str) -> Iterator[Cell]:
    """Yield each cell when its job has finished; a cell whose job was killed is left out.

    At most `workers` jobs run at once. Their logs go to the folder "submitit" of the store. Raises `InputError` where
    there is no submitit or no Slurm, and what a job gives back.
    """
    executor = _executor(root, device, workers)
    from submitit.core.utils import FailedJobError, UncompletedJobError
    from submitit.helpers import as_completed

    with executor.batch():
        submitted = [executor.submit(Job(compute, cell)) for cell in cells]
    of_job = {job.job_id: cell for job, cell in zip(submitted, cells, strict=True)}
    try:
        for job in as_completed(submitted, poll_frequency=1):
            try:
                failure = job.result()
            except FailedJobError:  # the cell's own failure; it is an UncompletedJobError too
                raise
            except UncompletedJobError:
                continue
            if failure is not None:
                raise failure
            yield of_job[job.job_id]
    finally:
        for job in submitted:
            if not job.done():
                job.cancel()


def _executor(root: Path, device: str, workers: int) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise InputError("The engine 'slurm' needs submitit; install it with `pip install submitit`.") from error
    if CLUSTER == "slurm" and shutil.which("sbatch") is None:
        raise InputError("The engine 'slurm' needs the command sbatch, which this machine lacks; allowed is 'local'.")
    executor = submitit.AutoExecutor(folder=root / "submitit", cluster=CLUSTER)
    place = {} if device == "cpu" else {"gpus_per_node": 1, "cpus_per_task": CPUS_BESIDE_GPU}
    executor.update_parameters(name="ddlnl", timeout_min=MINUTES, slurm_array_parallelism=workers, **place)
    return executor
