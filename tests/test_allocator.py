"""Freed blocks of megabytes stay with the process and are used again instead of being mapped and paged in anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from ddlnl import _allocator

# How many MiB does the C library hold more after a block of 40 MiB was taken, written and freed? Its own books tell,
# whatever a system counts as page faults; by itself it gives every block above 32 MiB back at once.
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
block = torch.empty(40 * 2**20, dtype=torch.uint8).fill_(1)
del block
print(held() - before)
"""


def _release() -> tuple[int, ...]:
    name, version = platform.libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else (0,)


@pytest.mark.skipif(_release() < (2, 35), reason="before glibc 2.35 blocks above 32 MiB cannot be kept")
def test_freed_blocks_stay_with_the_process():
    def held(word: str) -> float:
        command = [sys.executable, "-c", HELD, word]
        return float(subprocess.run(command, capture_output=True, check=True).stdout)

    assert _allocator.keep_freed_blocks()
    assert held("keep") > 39
    assert held("default") < 20
