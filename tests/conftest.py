"""What all tests share: where real data is; no network, in any process; and one thread, so that sums repeat and a busy
machine does not stall them."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

OFFLINE = Path(__file__).parent / "offline"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")]))
runpy.run_path(str(OFFLINE / "sitecustomize.py"))


@pytest.fixture(scope="session")
def archive() -> Callable[[str], Path]:
    """`archive("cifar10")` is the folder that holds that archive; the test is skipped where there is none."""

    def folder(name: str) -> Path:
        place = os.environ.get("DDLNL_DATA")
        if not place:
            pytest.skip(f"$DDLNL_DATA is not set, so there is no {name}.npz to test on")
        if not (Path(place) / f"{name}.npz").is_file():
            pytest.skip(f"{name}.npz is not in $DDLNL_DATA ({place})")
        return Path(place)

    return folder
