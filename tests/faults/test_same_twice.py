"""The same run twice gives the same bytes; another number of threads, or a neighbour on the store, changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from losses import STEPS
from test_study import VOLATILE, environment, write_small_archive

from ddlnl import store

TWICE = "runs in new processes write the same records and sets, byte for byte but for times"
TOGETHER = "two studies on one store at once write what one writes"
THREADS = "losses of 20 steps are those of one thread, within 1e-4"
PROGRAM = """
import os, sys
import small
from ddlnl import study
from ddlnl.profiles import PROFILES

PROFILES["demo"] = small.profile()
methods = ["full", "dance", "datm", "rcig", "random", "random_soft", "predicted", "gce", "elr", "coteaching"]
grid = study.grid(sys.argv[1], rates=[0.5], methods=methods, ipcs=[2], seeds=1)
for place in sys.argv[2:]:
    children = []
    for _ in range(2 if place.endswith("shared") else 1):
        children.append(os.fork())
        if children[-1] == 0:
            study.run(grid, place, device="cpu", progress=False)
            os._exit(0)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
"""


def run(archive: str, seed: int, *places: Path) -> None:
    """The study in new processes, whose hashes of text follow `seed`; two at once for a place named "shared"."""
    settings = environment() | {"PYTHONHASHSEED": str(seed)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, archive, *places], env=settings, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr


def written(place: Path) -> dict[str, bytes]:
    """Every record without its times, and every distilled set."""
    found = {}
    for path in place.glob("records/*/*.json"):
        body = store.read_record(path)["body"]
        lasting = {name: value for name, value in body.items() if name not in {*VOLATILE, "seconds_tests"}}
        found[str(path.relative_to(place))] = json.dumps(lasting).encode()
    for path in place.glob("artefacts/*.safetensors"):
        if "seconds" not in store.read_tensors(path)[0]:  # of DANCE's experts
            found[str(path.relative_to(place))] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[str, dict[str, bytes]]:
    """An archive, and what a study of it writes; beside it, in `shared`, what two at once have written."""
    folder = tmp_path_factory.mktemp("alone")
    archive = write_small_archive(folder)
    run(archive, 1, folder / "store", folder / "shared")
    found = written(folder / "store")
    assert sum("records/cell" in name for name in found) == 10
    assert sum(name.endswith("-set.safetensors") for name in found) == 6
    return archive, found


def test_a_study_in_a_new_process_writes_the_same_bytes(alone, tmp_path, tries, tally):
    archive, expected = alone
    for number in range(tries(1, 2)):
        run(archive, 2 + number, tmp_path / str(number))
        assert written(tmp_path / str(number)) == expected
        tally(TWICE, len(expected), len(expected))


def test_two_studies_on_one_store_at_once_write_what_one_writes(alone, tmp_path, tries, tally):
    archive, expected = alone
    places = [tmp_path / f"{number}-shared" for number in range(tries(0, 1))]
    if places:
        run(archive, 2, *places)
    for place in (Path(archive).with_name("shared"), *places):
        assert written(place) == expected
        assert not (place / "damaged").exists()
        tally(TOGETHER)


def test_two_threads_give_the_losses_of_one(tally):
    # Two threads that wait for each other with a loop would take minutes where other programs run too.
    settings = environment() | {"OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, Path(__file__).with_name("losses.py")]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, (one, two) in json.loads(done.stdout).items():
        assert len(one) == STEPS
        assert np.abs(np.divide(two, one) - 1).max() <= 1e-4, name
        tally(THREADS, STEPS, STEPS)
