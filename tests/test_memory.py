"""What a cell takes of memory is measured, recorded and bounded; `test_notebooks.py` bounds the cells of `demo`."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
import torch

from ddlnl import measure, store

RESULTS = Path(__file__).parent.parent / "notebooks" / "results"
CPU = torch.device("cpu")


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system forgets no peak of memory")
def test_the_recorded_peak_is_that_since_a_cell_began():
    measure.reset_peak(CPU)
    before = measure.peak_mib(CPU)
    with mmap.mmap(-1, 2**27) as held:  # 128 MiB of the system's, as an allocator may have freed ones to give
        held.write(bytes(2**27 - 1) + b"1")
        assert 120 <= measure.peak_mib(CPU) - before <= 300
    assert measure.peak_mib(CPU) - before >= 120
    measure.reset_peak(CPU)
    assert measure.peak_mib(CPU) - before <= 60


def test_every_laptop_cell_took_at_most_6_gib():
    peaks = store.table(RESULTS)["peak_memory_mib"]
    assert peaks.between(500, 6 * 1024).all()
