"""A disk that is full or cannot be written to costs one sentence; the study ends when the fault is gone."""

from __future__ import annotations

import datetime
import errno
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_damage import same
from test_kills import SAVED
from test_study import archive_path as archive_path
from test_study import lasting

from ddlnl import files, records, study
from ddlnl.__main__ import main
from ddlnl.cells import Cell

SAVES, RUNS = (
    "saves that fail on a full or read-only disk leave the old or the new file",
    "studies on a full or read-only disk go on later",
)
CLOCK = "studies whose clock jumps end with the same record"
HERE = Path(__file__).parent
KINDS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)


class Disk:
    """From step `first` of the saves on (opening, each write, fsync, rename) nothing works any more."""

    def __init__(self, first: int, kind: int) -> None:
        self.first, self.kind, self.steps = first, kind, itertools.count()

    def step(self, *path: object) -> None:
        if next(self.steps) >= self.first:
            raise OSError(self.kind, os.strerror(self.kind), *path)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        disk = self

        class File(io.FileIO):
            def write(self, data) -> int:
                disk.step()  # as with the system's own, the error has no name
                return super().write(data)

        def opened(path, mode):
            disk.step(str(path))
            return File(path, mode)

        def before(call):
            return lambda *given: (disk.step(), call(*given))[1]

        patch.setattr(files, "open", opened, raising=False)
        for name in ("fsync", "replace"):
            patch.setattr(files.os, name, before(getattr(os, name)))


def left_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def failure(disk: Disk, save: Callable, path: Path) -> OSError | None:
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        try:
            save(path, 1)
        except OSError as error:
            return error
    return None


@pytest.mark.parametrize("kind", SAVED)
def test_a_save_that_fails_at_any_step_names_the_file_and_leaves_the_old_one(kind, tmp_path, tries, tally):
    name, save, read = SAVED[kind]
    path = tmp_path / name
    new, old = ((save(path, number), read(path))[1] for number in (1, 0))
    steps, seen = 0, set()
    while error := failure(Disk(steps, KINDS[steps % len(KINDS)]), save, path):
        for again in range(tries(0, len(KINDS) - 1)):
            error = failure(Disk(steps, KINDS[(steps + 1 + again) % len(KINDS)]), save, path)
            assert isinstance(error, OSError)
            tally(SAVES)
        assert path.name in str(error.filename)
        seen.add((same(read(path), old), same(read(path), new)))
        assert left_in(path.parent) == [path]
        save(path, 0)
        tally(SAVES)
        steps += 1
    assert seen == {
        (True, False),
        (False, True),
    }  # the last step, that the new name is on the disk, comes after the rename
    assert steps > 4
    assert same(read(path), new)


def moments(archive: str, place: Path, monkeypatch, words: list[str]) -> int:
    """How many steps the saves of the whole study have."""
    with monkeypatch.context() as patch:
        disk = Disk(10**9, 0)
        disk.install(patch)
        main([*words, "--store-dir", str(place)])
    return next(disk.steps)


def test_a_study_on_a_disk_that_fails_is_refused_in_one_sentence_and_goes_on_when_there_is_room(
    archive_path, tmp_path, monkeypatch, capsys, tries, tally
):
    words = ["study", "--dataset", archive_path, "--methods", "dance", "--rates", "0.5", "--ipcs", "2", "--seeds", "1"]
    words += ["--device", "cpu"]
    steps, draws = moments(archive_path, tmp_path / "whole", monkeypatch, words), random.Random(0)
    cell = Cell(archive_path, "symmetric:0.5", "dance", 2, 0, "demo")
    whole = lasting(study.run([cell], tmp_path / "whole", device="cpu", progress=False))
    for number in range(tries(2, 15)):
        place = tmp_path / str(number)
        with monkeypatch.context() as patch:
            Disk(draws.randrange(steps), draws.choice(KINDS)).install(patch)
            with pytest.raises(SystemExit) as stop:
                main([*words, "--store-dir", str(place)])
        assert stop.value.code == 2
        told = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
        assert told.startswith(f"The cell ({cell}) stopped: [Errno")
        assert told.endswith("or name another folder as store_dir (or $DDLNL_STORE).")
        assert not [path for path in left_in(place) if path.suffix == ".tmp"]
        assert lasting(study.run([cell], place, device="cpu", progress=False)) == whole
        tally(RUNS)


def test_a_finished_study_needs_no_right_to_write(archive_path, tmp_path, monkeypatch, tally):
    cell = Cell(archive_path, "clean", "random", 1, 0, "demo")
    first = study.run([cell], tmp_path / "store", device="cpu", progress=False)
    Disk(0, errno.EROFS).install(monkeypatch)
    assert lasting(study.run([cell], tmp_path / "store", device="cpu", progress=False)) == lasting(first)
    tally(RUNS)


def test_a_study_on_real_small_disks_ends_with_the_record_it_would_have_had(tmp_path, tries, tally):
    if not may_mount():
        pytest.skip("this process may not mount a small disk of its own (unshare --mount)")
    paths = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = ["unshare", "--mount", sys.executable, HERE / "disks.py", tmp_path]
    sizes = tries(1, 3)
    command += [str(16 + 340 * number // sizes) for number in range(sizes)]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["refused"] > sizes
    tally(RUNS, found["refused"], found["refused"])


def may_mount() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


def jumping() -> Iterator[float]:
    """Seconds since 1970 of a clock that is put back by a day, ahead by two, to the year 1971."""
    for step in itertools.count():
        yield (1e9, 1e9 - 86400, 1e9 + 86400, 4e7)[step % 4] + step


def install(patch: pytest.MonkeyPatch, now: Callable[[], float]) -> None:
    """`now` is the clock of the system."""

    class Date(datetime.datetime):
        @classmethod
        def now(cls, tz=None) -> datetime.datetime:
            return cls.fromtimestamp(now(), tz)

    patch.setattr("time.time", now)
    patch.setattr("time.time_ns", lambda: int(1e9 * now()))
    patch.setattr(records, "datetime", SimpleNamespace(datetime=Date, timezone=datetime.timezone))


def test_a_clock_that_is_put_back_and_ahead_changes_no_record(archive_path, tmp_path, monkeypatch, tally):
    for method in ("dance", "datm"):
        cell = Cell(archive_path, "symmetric:0.5", method, 2, 0, "demo")
        whole = study.run([cell], tmp_path / "whole", device="cpu", progress=False)
        with monkeypatch.context() as patch:
            clock, asked = jumping(), []
            install(patch, lambda clock=clock, asked=asked: asked.append(next(clock)) or asked[-1])
            jumped = study.run([cell], tmp_path / "jumped", device="cpu", progress=True)
            assert jumped["finished"].item() < "2002"
            for path in (tmp_path / "jumped").rglob("*.*"):
                os.utime(path, (0, 0))
            record = tmp_path / "jumped" / "records" / "cell" / f"{whole['key'].item()}.json"
            record.write_bytes(record.read_bytes()[:-9])
            with pytest.warns(UserWarning, match="It was moved to .* and is computed again"):
                again = study.run([cell], tmp_path / "jumped", device="cpu", progress=False)
        assert len(asked) == 3  # for two records, and to set the damaged one aside
        assert lasting(jumped) == lasting(again) == lasting(whole)
        assert 0 <= jumped["seconds"].item() < 1000
        tally(CLOCK)
