"""A save leaves the whole file and nothing else, on any file system and after any number of killed ones."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ddlnl import files
from ddlnl.store import Store

HALF = """
import os, signal, sys
from pathlib import Path
from ddlnl.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_saving(path: Path) -> Path:
    """The temporary file that a process leaves behind."""
    done = subprocess.run([sys.executable, "-c", HALF, path])
    assert done.returncode == -signal.SIGKILL
    (left,) = (one for one in path.parent.iterdir() if one.name.startswith(f".{path.name}."))
    assert left.read_bytes() == b"half"
    return left


def save(path: Path) -> None:
    with files.replacing(path) as file:
        file.write(b"whole")


def test_the_next_save_removes_what_a_killed_one_left_and_touches_nothing_of_others(tmp_path):
    path = tmp_path / "key[1].json"
    left = killed_while_saving(path)
    beside = tmp_path / left.name.replace("key[1]", "key1")
    elsewhere = tmp_path / f".key[1].json.01234567.{left.name.split('.')[-2]}.tmp"
    alive = tmp_path / left.name.replace(left.name.split(".")[-2], str(os.getppid()))
    for other in (beside, elsewhere, alive):
        other.touch()
    save(path)
    assert path.read_bytes() == b"whole"
    assert set(tmp_path.iterdir()) == {path, beside, elsewhere, alive}


def test_a_loop_that_is_done_leaves_no_half_of_its_state(tmp_path):
    killed_while_saving(tmp_path / "progress" / "key-making.safetensors")
    Store(tmp_path).forget_progress("key")
    assert not list((tmp_path / "progress").iterdir())


def fails_on(kind, number: int):
    """An fsync that does not work on folders, or on files."""
    fsync = os.fsync

    def failing(opened: int) -> None:
        if kind(os.fstat(opened).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(opened)

    return failing


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF])
def test_a_file_system_that_cannot_sync_folders_is_good_enough(tmp_path, monkeypatch, number):
    monkeypatch.setattr(files.os, "fsync", fails_on(stat.S_ISDIR, number))
    save(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.parametrize(("kind", "number"), [(stat.S_ISREG, errno.EINVAL), (stat.S_ISDIR, errno.EIO)])
def test_any_other_sync_that_fails_is_an_error(tmp_path, monkeypatch, kind, number):
    monkeypatch.setattr(files.os, "fsync", fails_on(kind, number))
    with pytest.raises(OSError, match=os.strerror(number)):
        save(tmp_path / "file")
    assert not list(tmp_path.glob(".*"))
