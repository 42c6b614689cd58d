"""How the C library keeps memory that was freed, which decides the speed of small training steps on a CPU."""

from __future__ import annotations

import ctypes
import functools

# Numbers of parameters in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


@functools.cache
def keep_freed_blocks() -> bool:
    """Let this process reuse freed blocks of megabytes instead of handing each back to the system.

    glibc maps and unmaps every large block, so that each activation of a training step is paged in anew: a step of the
    laptop profile takes 30 % less time without that. Returns whether it could be set; other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Releases before 2.35 refuse a mapping threshold above 32 MiB.
    mapped = mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_THRESHOLD, 1 << 25)
    return bool(mapped and mallopt(_TRIM_THRESHOLD, 1 << 30))
