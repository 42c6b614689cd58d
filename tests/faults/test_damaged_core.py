"""A damaged compiled core is found before it is loaded: no import crashes, and the operators run on their twins."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddlnl import _build, _core

PROMISE = "a damaged compiled core is found before it is loaded"
PACKAGE = Path(_core.__file__).parent
LIBRARIES = _core._libraries(PACKAGE)
needs_library = pytest.mark.skipif(not LIBRARIES, reason="there is no compiled core beside the package")


def copied(folder: Path) -> Path:
    """The library that pip built, with its checksum."""
    for file in (LIBRARIES[0], PACKAGE / "SHA256SUMS"):
        shutil.copy(file, folder)
    return folder / LIBRARIES[0].name


def flip(library: Path, draws: random.Random) -> tuple[int, int]:
    """Another value of one random bit; where it is, so that the same call may take it back."""
    place, bit = draws.randrange(library.stat().st_size), draws.randrange(8)
    flip_at(library, place, bit)
    return place, bit


def flip_at(library: Path, place: int, bit: int) -> None:
    with open(library, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


@needs_library
def test_no_flipped_bit_and_no_cut_of_a_library_is_loaded(tmp_path, monkeypatch, tries, tally):
    library, draws = copied(tmp_path), random.Random(0)
    assert _build.is_whole(library)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail("a damaged library was loaded"))
    for _ in range(count := tries(30, 800)):
        where = flip(library, draws)
        with pytest.raises(_build.Unbuilt, match="does not match the checksum"):
            _core._load(library)
        flip_at(library, *where)
    tally(PROMISE, count, count)
    assert _build.is_whole(library)
    for _ in range(count := tries(10, 180)):
        os.truncate(library, draws.randrange(library.stat().st_size))
        with pytest.raises(_build.Unbuilt, match="does not match the checksum"):
            _core._load(library)
        shutil.copy(LIBRARIES[0], library)
    tally(PROMISE, count, count)


PROGRAM = """
import torch
from ddlnl import ops
print(ops.backend().name, ops.softplus_pool(torch.zeros(1, 1, 2, 2), 1.0).item())
"""


@needs_library
def test_a_program_with_a_damaged_core_warns_once_and_computes(tmp_path, tries, tally):
    site, draws = tmp_path / "site", random.Random(1)
    shutil.copytree(PACKAGE, site / "ddlnl", ignore=shutil.ignore_patterns("__pycache__", "csrc", "_C*"))
    library = copied(site / "ddlnl")
    environment = {name: value for name, value in os.environ.items() if name not in ("DDLNL_EXTENSION", "PYTHONPATH")}
    for number in range(count := tries(1, 6)):
        if number % 2 == 0:
            os.truncate(library, draws.randrange(library.stat().st_size))
        else:
            flip(library, draws)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=site, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["reference", "0.6931471824645996"]
        assert done.stderr.count("does not match the checksum beside it") == 1
        shutil.copy(LIBRARIES[0], library)
    tally(PROMISE, count, count)
