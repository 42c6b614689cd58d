"""Files and folders that are named by text: from a caller, from the environment, or the user's own on this system."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ddlnl.errors import InputError


def path_of(place: object, what: str) -> Path:
    """`place`, text or a path, with "~" expanded. Raises `InputError`, naming `what` it is, where no file can be there.

    What is merely missing, or may not be read, is a path all the same.
    """
    if not isinstance(place, (str, os.PathLike)) or not str(place).strip():
        raise InputError(f"The {what} is {place!r}, and it must be a path.")
    try:
        path = Path(place).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except (OSError, ValueError, RuntimeError) as error:  # too long; with a null character; of an unknown user
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise InputError(f"The {what} {str(place)[:80]!r} cannot be a path ({reason}).") from error
    return path


def of_user(find: Callable[[str], str]) -> Path | None:
    """The folder of this package that `find`, a function of platformdirs, gives; None for a user without a home."""
    try:
        return Path(find("ddlnl")).expanduser()
    except RuntimeError:
        return None
