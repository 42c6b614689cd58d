"""Shared fixtures: where real data is, and one thread, so that sums repeat and a busy machine does not stall them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


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
