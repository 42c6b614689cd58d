"""Archives: one .npz file per dataset, and the folders where they are looked up.

Keys of an archive: `train_images`, `test_images` (N, H, W, C) uint8; `train_labels`, `test_labels` (N,) int64;
`class_names` (K,) text; optionally `observed_labels__<set>` (N,) int64, labels that people gave to the training images.
Other keys are kept and ignored.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import platformdirs

from ddlnl.errors import InputError
from ddlnl.files import replacing

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
HUMAN = "observed_labels__"  # followed by the name of the label set


def folders(data_dir: str | Path | None = None) -> list[Path]:
    """Where archives are looked up, first to last: `data_dir`, $DDLNL_DATA, the user's cache directory."""
    places = (data_dir, os.environ.get("DDLNL_DATA"), platformdirs.user_cache_dir("ddlnl"))
    return list(dict.fromkeys(Path(place).expanduser() for place in places if place))


def find(name: str, data_dir: str | Path | None = None) -> Path | None:
    """The first `<name>.npz` in `folders(data_dir)`, or None."""
    found = (folder / f"{name}.npz" for folder in folders(data_dir))
    return next((path for path in found if path.is_file()), None)


def read(path: Path, required: Sequence[str] = REQUIRED) -> dict[str, np.ndarray]:
    """All arrays of an archive; nothing is unpickled, and zip's checksums are verified.

    Raises `InputError` where the file is missing, is not an .npz file, is damaged, or lacks a required key.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; a dataset is a name or the path of an .npz archive.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is not an .npz archive, or is one cut short; write it with numpy.savez.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{path} cannot be read ({reason}); write plain arrays with numpy.savez.") from error
    missing = [key for key in required if key not in arrays]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; an archive has the keys {', '.join(required)}.")
    return arrays


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an uncompressed archive so that a reader sees the old file or all of the new one, whatever is killed."""
    with replacing(path) as file:
        np.savez(file, **arrays)
