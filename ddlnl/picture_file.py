"""Pictures of other people, read by Pillow as data: what cannot be read becomes one sentence."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ddlnl.errors import InputError, reason

# Whatever a file is called, Pillow goes by what is in it, and hands PostScript to an interpreter.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """The picture, for a block that only reads it.

    Raises `InputError` where that fails, and for more pixels than Pillow warns of, some 90 million.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if not file.is_file():
                raise OSError("it is no file")
            with Image.open(file, formats=FORMATS) as picture:
                yield picture
    except Exception as error:  # what the file holds decides where Pillow stops, and with what
        raise InputError(f"{file} cannot be read as a picture ({reason(error)}).") from error
