"""kill -9 of a study's process or of one of its two workers, at random moments, loses nothing either."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_study import archive_path as archive_path
from test_study import environment, lasting

from ddlnl import study
from ddlnl.cells import Cell

KILLED = "studies of two workers whose processes are killed end with the same records"
PROGRAM = """
import sys
import small
from ddlnl import study
from ddlnl.profiles import PROFILES
from test_killed_workers import four

PROFILES["demo"] = small.profile()  # also in spawned workers, which import this file

if __name__ == "__main__":
    study.run(four(sys.argv[1]), sys.argv[2], device="cpu", workers=2, progress=False)
"""


def four(archive: str) -> list[Cell]:
    return study.grid(archive, rates=[0.5], methods=["full", "dance", "datm", "random"], ipcs=[2], seeds=1)


def workers(process: int) -> list[int]:
    """The processes that compute cells for this one; none where it ends just now."""
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc to find workers in")
def test_a_study_of_two_workers_outlives_kills_of_itself_and_of_them(archive_path, tmp_path, tries, tally):
    script, place = tmp_path / "run.py", tmp_path / "killed"
    script.write_text(PROGRAM)
    paths = environment()
    paths["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    whole = lasting(study.run(four(archive_path), tmp_path / "whole", device="cpu", progress=False))
    draws, kills = random.Random(0), 0
    while kills < tries(2, 30):
        ended, patience = False, 6.0
        while not ended:
            process = subprocess.Popen(
                [sys.executable, script, archive_path, place], env=paths, stderr=subprocess.DEVNULL
            )
            time.sleep(draws.uniform(1, patience))
            found = workers(process.pid)
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):  # a worker that has just ended
                    os.kill(draws.choice([process.pid, *found]), signal.SIGKILL)
                    kills += 1
            code = process.wait()
            assert code in (0, -signal.SIGKILL), "a study whose worker is killed must go on"
            ended = code == 0
            patience *= 1.5  # every study comes to its end some time
        assert lasting(study.run(four(archive_path), place, device="cpu", progress=False)) == whole
        shutil.rmtree(place)
    tally(KILLED, kills, kills)
