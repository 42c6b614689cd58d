"""A campaign against one cell: it is killed at random moments until it finishes, again and again, in new stores.

`python killing.py FOLDER METHOD KILLS` prints how often it was killed and how many of the finished records differ.
Every run is a fork of this process, which has done no arithmetic, so that it begins without the seconds of the imports.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

import small
import torch
from test_study import VOLATILE, write_small_archive

from ddlnl import store, study
from ddlnl.cells import Cell
from ddlnl.profiles import PROFILES


def run(cell: Cell, place: Path) -> None:
    """The cell in this process, which ends."""
    torch.set_num_threads(1)
    init = store.Progress.__init__
    store.Progress.__init__ = lambda self, where, path, interval: init(self, where, path, 0.0)  # save at every step
    study.run([cell], place, device="cpu", progress=False)
    os._exit(0)


def start(cell: Cell, place: Path) -> int:
    child = os.fork()
    if child == 0:
        run(cell, place)
    return child


def ended(child: int) -> bool:
    """Whether it ended by itself; kills it where it has not."""
    if os.waitpid(child, os.WNOHANG)[0]:
        return True
    os.kill(child, 9)
    return os.waitpid(child, 0)[1] != 9


def result(place: Path) -> list[dict]:
    return store.table(place).drop(columns=VOLATILE).to_dict("records")


def main(folder: Path, method: str, wanted: int) -> None:
    PROFILES["demo"] = small.profile()
    cell = Cell(write_small_archive(folder), "symmetric:0.5", method, 0 if method == "full" else 2, 0, "demo")
    began = time.monotonic()
    assert os.waitpid(start(cell, folder / "whole"), 0)[1] == 0
    whole = time.monotonic() - began
    expected, moments = result(folder / "whole"), random.Random(method)
    kills = finished = different = 0
    while kills < wanted or not finished:
        place, longest = folder / "killed", whole / 2
        while True:
            child = start(cell, place)
            time.sleep(moments.uniform(0, longest))
            if ended(child):
                break
            kills += 1
            longest *= 1.05  # every run comes to its end some time
        finished += 1
        different += result(place) != expected
        shutil.rmtree(place)
    print(json.dumps({"kills": kills, "finished": finished, "different": different}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
