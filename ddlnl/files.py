"""Files that are either there as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well: temporary file, fsync, rename.

    Whatever is killed when, a reader sees the old file or all of the new one. Where there is no room, or no right to
    write, the OSError names a path and no half of a file stays; what a killed process left goes with the next save.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, glob.escape(path.name))
    temporary = path.with_name(f".{path.name}.{_here()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk shows in a write, which knows no name
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Make the names in it survive a power cut too, where the file system can do that for a folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(opened)


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove what processes of this machine, killed while they saved, left of files called `names`, a pattern."""
    for path in folder.glob(f".{names}.{_here()}.*.tmp"):
        if not is_being_written(path):
            path.unlink(missing_ok=True)


def is_being_written(temporary: Path) -> bool:
    """Whether the process that writes this temporary file lives; False too where it belongs to another machine."""
    here, number = temporary.name.split(".")[-3:-1]
    return here == _here() and _lives(int(number))


def _lives(process: int) -> bool:
    if os.name != "posix":
        return True  # it cannot be asked without ending it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


@functools.cache
def _here() -> str:
    """8 hex digits for where numbers tell processes apart: this machine, and the container on it."""
    with contextlib.suppress(OSError):
        return _digits(f"{platform.node()} {os.readlink('/proc/self/ns/pid')}")
    return _digits(platform.node())


def _digits(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]
