"""Archives: one .npz file per dataset, and the folders where they are looked up.

Keys of an archive: `train_images`, `test_images` (N, H, W, C) uint8; `train_labels`, `test_labels` (N,) int64;
`class_names` (K,) text; optionally `observed_labels__<set>` (N,) int64, labels that people gave to the training images.
Other keys are left alone.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import platformdirs

from ddlnl.errors import InputError, reason
from ddlnl.files import replacing
from ddlnl.places import of_user, path_of

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
GROWTH = 200  # times a file's size to unpack to at most: photographs shrink a few times, drawings some dozens of times
SMALL = 2**16  # bytes; a smaller file counts as one of these
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_UNREADABLE = (  # what zipfile, zlib and numpy raise, depending on where a file is broken
    *(OSError, ValueError, EOFError, MemoryError, RecursionError, RuntimeError, NotImplementedError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those of numpy.savez and torch.save
HUMAN = "observed_labels__"  # followed by the name of the label set


def folders(data_dir: str | Path | None = None) -> list[Path]:
    """Where archives are looked up, first to last: `data_dir`, $DDLNL_DATA, the user's cache directory.

    Raises `InputError` where there is none of them, or one that cannot be a path.
    """
    places = (data_dir, os.environ.get("DDLNL_DATA"), of_user(platformdirs.user_cache_dir))
    if not any(places):
        raise InputError("This user has no home folder for archives; name a folder as data_dir (or $DDLNL_DATA).")
    return list(dict.fromkeys(path_of(place, "folder data_dir (or $DDLNL_DATA)") for place in places if place))


def find(name: str, data_dir: str | Path | None = None) -> Path | None:
    """The first `<name>.npz` in `folders(data_dir)`, or None."""
    found = (folder / f"{name}.npz" for folder in folders(data_dir))
    return next((path for path in found if path.is_file()), None)


def read(path: Path, required: Sequence[str] = REQUIRED, others: bool = False) -> dict[str, np.ndarray]:
    """The arrays of an archive under the keys above; nothing is unpickled, and zip's checksums are verified.

    others: read every other key too. No memory is taken for what a header announces and the file does not hold, nor for
    more than `GROWTH` times the file. Raises `InputError` where the file is missing, is not an .npz file, is damaged,
    grows more, or lacks a required key.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; a dataset is a name or the path of an .npz archive.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz archive, or is one cut short; write it with numpy.savez.")
    try:
        with zipfile.ZipFile(path) as file:
            _check_members(file, path.stat().st_size)
        with np.load(path, allow_pickle=False) as file:
            known = (key for key in file.files if others or key in REQUIRED or key.startswith(HUMAN))
            arrays = {key: file[key] for key in known}
    except _UNREADABLE as error:
        raise InputError(f"{path} cannot be read ({reason(error)}); write plain arrays with numpy.savez.") from error
    missing = [key for key in required if key not in arrays]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; an archive has the keys {', '.join(required)}.")
    return arrays


def _check_members(file: zipfile.ZipFile, size: int) -> None:
    """Raise ValueError unless every member is an array of the size that its header says, and the file of `size` bytes
    grows credibly."""
    members = file.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("it holds two arrays of one name")
    # Of all members together, and of the file: members may overlap, so what each says of its compressed size adds up
    # to anything.
    if sum(member.file_size for member in members) > GROWTH * max(size, SMALL):
        raise ValueError(f"it grows more than {GROWTH} times when it is unpacked")
    for member in members:
        if member.compress_type not in COMPRESSIONS:  # the others give all of a bomb at the first byte that is read
            raise ValueError(f"{member.filename} is compressed in a way that numpy does not write")
        with file.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            if version not in _HEADERS:
                raise ValueError(f"{member.filename} has the unknown format {version}")
            shape, _, dtype = _HEADERS[version](stream)
            announced, held = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
        if not dtype.hasobject and (min(shape, default=0) < 0 or announced != held):  # numpy refuses objects
            raise ValueError(f"{member.filename} announces {shape} of {dtype} and holds {held} bytes")


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an uncompressed archive so that a reader sees the old file or all of the new one, whatever is killed."""
    with replacing(path) as file:
        np.savez(file, **arrays)
