"""kill -9 loses nothing: a save leaves the old file or the new one, and a killed run ends with its record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import test_damage
import torch
from image_sets import arrays

from ddlnl import archives, files, store

SAVES, RUNS = "killed saves leave the old or the new file", "killed runs end with the same record"
HERE = Path(__file__).parent


def record(path: Path, number: int) -> None:
    store.Store(path.parents[2]).save_record(path.parent.name, path.stem, {"number": number})


def tensors(path: Path, number: int) -> None:
    store.write_tensors(path, {"x": torch.full((5000,), float(number))}, {"number": number})


def archive(path: Path, number: int) -> None:
    archives.write(path, arrays() | {"number": np.array(number)})


SAVED: dict[str, tuple[str, Callable, Callable]] = {
    "record": ("records/cell/key.json", record, lambda path: store.read_record(path)["body"]),
    "artefact": ("artefacts/key.safetensors", tensors, store.read_tensors),
    "archive": ("own.npz", archive, partial(archives.read, others=True)),
}


class Fuse:
    """Kills this process at the step `last` of a save: before each call to the system, and amid each write."""

    def __init__(self, last: int) -> None:
        self.left = last

    def step(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), 9)
        self.left -= 1

    def before(self, call: Callable) -> Callable:
        def burning(*arguments, **options):
            self.step()
            return call(*arguments, **options)

        return burning

    def open(self, *arguments):
        self.step()
        file = open(*arguments)  # noqa: SIM115 (it is handed on)
        file_write = file.write

        class Half:
            """The file, whose every write reaches the disk in two parts."""

            def write(_, data) -> int:
                data = memoryview(data).cast("B")
                for part in (data[: len(data) // 2], data[len(data) // 2 :]):
                    self.step()
                    file_write(part)
                    file.flush()
                return len(data)

            def __getattr__(_, name):
                return getattr(file, name)

            def __enter__(half):
                return half

            def __exit__(_, *error):
                self.step()
                file.close()

        return Half()

    def light(self) -> None:
        files.open = self.open
        for name in ("fsync", "replace", "open", "close"):
            setattr(files.os, name, self.before(getattr(os, name)))


def killed_at(step: int, save: Callable, path: Path) -> bool:
    """Save in a process of its own that is killed at this step; False where the save has fewer steps."""
    child = os.fork()
    if child == 0:
        Fuse(step).light()
        save(path, 1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 9


@pytest.mark.parametrize("kind", SAVED)
def test_a_save_killed_at_any_step_leaves_the_old_file_or_the_new_one(kind, tmp_path, tally):
    name, save, read = SAVED[kind]
    path = tmp_path / name
    old, new = ((save(path, number), read(path))[1] for number in (0, 1))
    step, seen = 0, set()
    while True:
        save(path, 0)
        if not killed_at(step, save, path):
            break
        found = read(path)
        assert test_damage.same(found, old) or test_damage.same(found, new)
        seen.add(test_damage.same(found, new))
        assert [one for one in path.parent.iterdir() if not one.name.startswith(".")] == [path]
        tally(SAVES)
        step += 1
    assert step > 8
    assert seen == {False, True}  # some kills come before the rename and some after it
    assert test_damage.same(read(path), new)


@pytest.mark.parametrize("method", ["full", "dance", "datm", "rcig"])
def test_a_run_killed_at_random_moments_ends_with_the_record_it_would_have_had(method, tmp_path, tries, tally):
    kills = tries(6, 250)
    paths = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, HERE / "killing.py", tmp_path, method, str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] >= kills
    assert found["different"] == 0
    assert found["finished"] > 0
    tally(RUNS, found["kills"], found["kills"])
