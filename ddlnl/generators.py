"""Named random generators.

Every random draw of the package comes from a generator named by a seed and a purpose, never from global state, so that
a cell re-run gives the same record whatever else ran, and a loop resumes from its iteration number alone.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on every word of `purpose` (stable across processes, machines and versions)."""
    name = "/".join(str(word) for word in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator named by `seed` and `purpose`; draws are made on the CPU so that devices agree."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """The NumPy counterpart of `generator`."""
    return np.random.default_rng(derive(seed, *purpose))
