"""Whether results can be written to where they shall go, tried before the work that makes them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ddlnl.errors import InputError


def require_folder(folder: str | Path) -> None:
    """Raise `InputError` unless files can be written into this folder, which may be missing; nothing stays of it."""
    try:
        place = Path(folder).expanduser().absolute()
        there = next(one for one in (place, *place.parents) if os.path.lexists(one))
        with tempfile.TemporaryDirectory(prefix=".ddlnl.", dir=there) as trial:
            for part in place.relative_to(there).parts:
                (Path(trial) / part).mkdir(exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{folder} cannot be written ({why}); name a folder that can.") from error


def require_file(path: str | Path) -> None:
    """Raise `InputError` unless a file can be written at this path, in a folder that may be missing."""
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, and it must be the path of a file.")
    require_folder(Path(path).parent)
