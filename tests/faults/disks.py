"""A study on disks that are full or read-only, each a small file system of its own, until there is room.

`unshare --mount python disks.py FOLDER SIZE...` prints, for each size in KiB, how often the study was refused before it
ended, and what was wrong with the refusals. Every run is a fork of this process, which has done no arithmetic.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import small
import torch
from killing import result
from test_study import write_small_archive

from ddlnl import store
from ddlnl.__main__ import main
from ddlnl.profiles import PROFILES

METHODS = ("dance", "datm", "random_soft")


def study(archive: str, place: Path, told: Path) -> int:
    """The exit code of the command line; what it writes goes to the file `told`."""
    child = os.fork()
    if child == 0:
        with open(told, "w") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        torch.set_num_threads(1)
        init = store.Progress.__init__
        store.Progress.__init__ = lambda self, where, path, interval: init(self, where, path, 0.0)
        words = ["study", "--dataset", archive, "--rates", "0.5", "--ipcs", "2", "--seeds", "1", "--device", "cpu"]
        try:
            main([*words, "--methods", *METHODS, "--store-dir", str(place)])
        except SystemExit as stop:
            sys.stderr.flush()
            os._exit(stop.code or 0)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def mount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], check=True)


def faults(code: int, told: Path, place: Path) -> list[str]:
    """What is wrong with a refusal and with what it left on the disk."""
    last = told.read_text().replace("\r", "\n").strip().splitlines()[-1:]
    found = [] if code == 2 else [f"exit code {code}: {told.read_text()}"]
    if not last or "Traceback" in told.read_text() or not any(word in last[0] for word in ("No space", "Read-only")):
        found.append(f"no sentence: {told.read_text()}")
    for path in sorted(place.rglob("*")):
        if path.name.endswith(".tmp"):
            found.append(f"{path} is left behind")
        elif path.suffix == ".json":
            store.read_record(path)
        elif path.suffix == ".safetensors":
            store.read_tensors(path)
    return found


def campaign(folder: Path, sizes: list[int]) -> dict:
    PROFILES["demo"] = small.profile()
    archive, told, place = write_small_archive(folder), folder / "told", folder / "disk"
    assert study(archive, folder / "whole", told) == 0, told.read_text()
    expected, refused, wrong = result(folder / "whole"), 0, []
    place.mkdir()
    for size in sizes:
        mount(place, f"size={size}k")
        for options in (None, "remount,ro", f"remount,rw,size={2 * size}k"):
            if options:
                subprocess.run(["mount", "-o", options, place], check=True)
            code = study(archive, place, told)
            if code == 0:
                continue
            refused += 1
            wrong += faults(code, told, place)
        subprocess.run(["mount", "-o", "remount,rw,size=64m", place], check=True)
        if (code := study(archive, place, told)) or result(place) != expected:
            wrong.append(f"with room, after {size} KiB, exit code {code}: {told.read_text()}")
        subprocess.run(["umount", place], check=True)
    return {"refused": refused, "finished": len(sizes), "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(campaign(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]])))
