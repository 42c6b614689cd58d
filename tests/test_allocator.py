"""Freed blocks of megabytes stay with the process and are used again instead of being mapped and paged in anew."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from ddlnl import _allocator

# How many MiB does the C library still hold after 10 blocks of 8 MiB were taken, written and freed? Its own books tell,
# whatever a system counts as page faults.
HELD = """
import ctypes, sys, torch
from ddlnl import _allocator
class Books(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
def held():
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Books
    books = library.mallinfo2()
    return (books.arena + books.hblkhd) / 2**20
if sys.argv[1] == "keep":
    _allocator.keep_freed_blocks()
before = held()
for _ in range(3):
    blocks = [torch.empty(8 * 2**20, dtype=torch.uint8).fill_(1) for _ in range(10)]
    del blocks
print(held() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library does not tell what it holds")
def test_freed_blocks_stay_with_the_process():
    def held(word: str) -> float:
        command = [sys.executable, "-c", HELD, word]
        return float(subprocess.run(command, capture_output=True, check=True).stdout)

    assert _allocator.keep_freed_blocks()
    assert held("keep") > 75
    assert held("default") < 30
