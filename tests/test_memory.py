"""What a cell takes of memory is measured, recorded and bounded; `test_notebooks.py` bounds the cells of `demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ddlnl import measure, store

RESULTS = Path(__file__).parent.parent / "notebooks" / "results"
CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_the_recorded_peak_is_that_since_a_cell_began():
    measure.reset_peak(CPU)
    before = measure.peak_mib(CPU)
    held = torch.ones(2**25)  # 128 MiB
    assert 120 <= measure.peak_mib(CPU) - before <= 200
    del held
    assert measure.peak_mib(CPU) - before >= 120
    measure.reset_peak(CPU)
    assert measure.peak_mib(CPU) - before <= 60


def test_every_laptop_cell_took_at_most_6_gib():
    peaks = store.table(RESULTS)["peak_memory_mib"]
    assert peaks.between(500, 6 * 1024).all()
