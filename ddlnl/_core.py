"""The compiled core: find the libraries that setup.py built from csrc/ and register their operators with torch."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path

import torch

from ddlnl.errors import InputError

CORE_VERSION = 1
"""The schemas this package calls; core_version() in csrc/ops.cpp is the same number."""


@functools.cache
def load() -> bool:
    """Register the compiled operators as `torch.ops.ddlnl.*`, once; return whether they are there.

    `DDLNL_EXTENSION=off` leaves them out. Otherwise a core that is not built, does not load or was built from other
    sources gives one RuntimeWarning. Raises InputError where DDLNL_EXTENSION is neither `on`, `off` nor empty.
    """
    wanted = os.environ.get("DDLNL_EXTENSION") or "on"
    if wanted not in ("on", "off"):
        raise InputError(f"DDLNL_EXTENSION is {wanted!r}; it can be 'on' (the default) or 'off'.")
    if wanted == "off":
        return False
    problem = _register(Path(__file__).parent)
    if problem:
        warnings.warn(
            f"The compiled core {problem}, so the slower PyTorch twins are used; "
            "`pip install --verbose --no-build-isolation -e .` builds it and shows why it may fail.",
            RuntimeWarning,
            stacklevel=2,
        )
    return not problem


def _register(folder: Path) -> str:
    """Load the libraries in `folder`; return what is wrong with them, or an empty string."""
    libraries = sorted(folder.glob("_C*.so"))  # _C before _C_cuda: the schemas before the kernels for them
    if not libraries:
        return "is not built"
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError as error:
        return f"does not load ({error})"
    built = torch.ops.ddlnl.core_version()
    return "" if built == CORE_VERSION else f"is version {built} where {CORE_VERSION} is needed"
