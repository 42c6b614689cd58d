"""No call of an operator ends the process, however wrong: there is an exception or the right answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ddlnl
from ddlnl import ops

PROMISE = "hostile calls of operators end in an exception or the right answer"
HERE = Path(__file__).parent


@pytest.mark.skipif(ops.backend().name == "reference", reason="there is no compiled core to call")
def test_no_hostile_call_of_an_operator_crashes_hangs_or_is_answered_wrongly(tally):
    paths = os.pathsep.join([str(HERE.parent), str(Path(ddlnl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, HERE / "hostile.py"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    *names, counts = done.stdout.splitlines()
    assert done.returncode == 0, f"{counts} ended the process.\n{done.stderr[-3000:]}"
    counts = json.loads(counts)
    assert counts["wrong"] == []
    assert counts["refused"] + counts["right"] == len(names)
    assert min(counts["refused"], counts["right"]) > 500
    tally(PROMISE, len(names), len(names))
