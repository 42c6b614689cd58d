"""Where a study runs changes nothing in its records, and a process that dies costs it nothing but time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import small
from test_study import archive_path as archive_path
from test_study import environment, lasting

from ddlnl import engines, parameters, slurm, study
from ddlnl.cells import Cell
from ddlnl.errors import CellFailed, InputError
from ddlnl.profiles import PROFILES
from ddlnl.training import NotFinite


def die_once(marker: Path) -> None:
    """Kill this process, unless one has been killed here before."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def meet(folder: Path, processes: int, patience: float = 120.0) -> None:
    """Wait until so many processes have come here."""
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + patience
    while len(list(folder.iterdir())) < processes:
        if time.monotonic() > end:
            raise TimeoutError(f"fewer than {processes} processes work at the same time")
        time.sleep(0.05)


def twelve(archive: str) -> list[Cell]:
    methods = ["full", "dance", "random", "random_soft", "predicted", "datm"]
    return study.grid(archive, rates=[0.5], methods=methods, ipcs=[2], seeds=2)


PROGRAM = """
import pathlib, warnings
import small
from ddlnl import engines, study
from ddlnl.profiles import PROFILES
from test_engines import die_once, meet, twelve

PROFILES["demo"] = small.profile()  # also in spawned workers, which import this file
run_cell = engines.run_cell

def fragile(cell, *arguments):
    meet(pathlib.Path({together!r}), 2)
    if cell.method == "predicted":
        die_once(pathlib.Path({marker!r}))
    run_cell(cell, *arguments)

engines.run_cell = fragile

if __name__ == "__main__":
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study.run(twelve({archive!r}), {store!r}, device="cpu", workers=2, progress=False)
    print(*[one.message for one in caught], sep="\\n")
"""


def test_a_study_of_two_workers_at_once_outlives_one_that_is_killed_and_ends_with_the_same_table(
    archive_path, tmp_path
):
    script, marker, store = tmp_path / "run.py", tmp_path / "died", tmp_path / "two"
    places = {"archive": archive_path, "store": str(store), "marker": str(marker), "together": str(tmp_path / "pids")}
    script.write_text(PROGRAM.format(**places))
    done = subprocess.run(
        [sys.executable, script], check=True, env=environment(threads=2), capture_output=True, text=True
    )
    assert marker.exists()
    assert "A process died that computed a cell" in done.stdout
    alone, together = (
        study.run(twelve(archive_path), place, device="cpu", progress=False) for place in (tmp_path / "alone", store)
    )
    assert lasting(alone) == lasting(together)


@pytest.fixture
def jobs_here(monkeypatch):
    """Jobs of submitit are processes of this machine, which know the helpers of the tests."""
    pytest.importorskip("submitit")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "CLUSTER", "local")


class SmallJob(slurm.Job):
    """A job on small settings, which live in this process only."""

    def __call__(self) -> Exception | None:
        PROFILES["demo"] = small.profile()
        return super().__call__()


class FragileJob(SmallJob):
    """The first job for `predicted` is killed."""

    def __call__(self) -> Exception | None:
        if self.cell.method == "predicted":
            die_once(Path(os.environ["DDLNL_TEST_MARKER"]))
        return super().__call__()


def test_jobs_of_submitit_give_the_same_table_also_where_one_is_killed(archive_path, tmp_path, monkeypatch, jobs_here):
    monkeypatch.setenv("DDLNL_TEST_MARKER", str(tmp_path / "died"))
    monkeypatch.setattr(slurm, "Job", FragileJob)
    cells = [cell for cell in twelve(archive_path) if cell.method in ("random", "predicted")]
    with pytest.warns(UserWarning, match="A process died that computed a cell; the 1 cells left"):
        table = study.run(cells, tmp_path / "jobs", device="cpu", engine="slurm", workers=2, progress=False)
    assert lasting(table) == lasting(study.run(cells, tmp_path / "serial", device="cpu", progress=False))


def test_a_job_that_fails_names_its_cell(archive_path, tmp_path, monkeypatch, jobs_here):
    monkeypatch.setattr(slurm, "Job", FailingJob)
    cell = Cell(archive_path, "clean", "random", 1, 0, "demo")
    with pytest.raises(RuntimeError, match=r"clean, random, IPC 1, seed 0\) failed: division by zero"):
        study.run([cell], tmp_path / "jobs", device="cpu", engine="slurm", progress=False)


class DivergingJob(slurm.Job):
    def __call__(self) -> Exception | None:
        return slurm.Job(partial(self.compute, one=diverge), self.cell)()


def diverge(*_: object) -> None:
    raise NotFinite("The training loss became nan in epoch 1 of 3.")


def test_a_job_that_diverges_ends_the_study_with_one_sentence(archive_path, tmp_path, monkeypatch, jobs_here):
    monkeypatch.setattr(slurm, "Job", DivergingJob)
    cell = Cell(archive_path, "clean", "random", 1, 0, "demo")
    with pytest.raises(CellFailed) as stopped:
        study.run([cell], tmp_path / "jobs", device="cpu", engine="slurm", progress=False)
    assert str(stopped.value) == f"The cell ({cell}) failed: The training loss became nan in epoch 1 of 3."
    (log,) = (tmp_path / "jobs" / "submitit").glob("*_log.err")
    assert "in diverge" in log.read_text()


class FailingJob(slurm.Job):
    def __call__(self) -> None:
        slurm.Job(partial(self.compute, one=lambda *_: 1 / 0), self.cell)()


def test_processes_that_die_again_and_again_end_the_study_with_a_sentence():
    cells = [Cell("digits", "clean", "random", ipc, 0, "demo") for ipc in (1, 2)]
    rounds = iter([cells[:1], [], [], [], []])
    with (
        pytest.warns(UserWarning, match="A process died"),
        pytest.raises(
            CellFailed, match=r'lack of memory.*outside `if __name__ == "__main__":`\. 1 cells are left.*IPC 2'
        ),
    ):
        list(engines._rounds(cells, lambda left: iter(next(rounds))))
    assert list(rounds) == [[]]  # one round that finished a cell and three fruitless ones


def test_a_device_of_the_nodes_is_not_looked_for_where_jobs_are_submitted(
    archive_path, tmp_path, monkeypatch, jobs_here
):
    monkeypatch.setattr(slurm, "Job", SmallJob)
    assert parameters.check({"device": "cuda:99", "engine": "slurm"}).device == "cuda:99"
    cell = Cell(archive_path, "clean", "random", 1, 0, "demo")
    sentence = "The device 'cuda:99' cannot be used here"
    with pytest.raises(InputError, match=sentence):  # what the job said
        study.run([cell], tmp_path, device="cuda:99", engine="slurm", progress=False)
    for call in (parameters.check, lambda names: study.run([cell], tmp_path, **names)):
        with pytest.raises(InputError, match=sentence):
            call({"device": "cuda:99"})
        for wrong in ("gpu", "meta", "cuda:x"):
            with pytest.raises(InputError, match=f"The device '{wrong}' is unknown; allowed are auto, cpu, cuda and"):
                call({"device": wrong, "engine": "slurm"})


def test_a_machine_without_slurm_says_so(archive_path, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    cell = Cell(archive_path, "clean", "random", 1, 0, "demo")
    with pytest.raises(InputError, match="needs the command sbatch"):
        study.run([cell], tmp_path, device="cpu", engine="slurm", progress=False)


def test_a_preempted_job_queues_itself_again(archive_path):
    pytest.importorskip("submitit")
    computed = []
    job = slurm.Job(computed.append, Cell(archive_path, "clean", "random", 1, 0, "demo"))
    again = job.checkpoint()
    again.function(*again.args, **again.kwargs)
    assert computed == [job.cell]
