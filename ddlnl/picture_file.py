"""Pictures of other people, read by Pillow as data: what cannot be read becomes one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ddlnl.errors import InputError, reason

# Whatever a file is called, Pillow goes by what is in it, and hands PostScript to an interpreter.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST = 2**26  # pixels; a small file may announce any number, and cameras have up to some 60 million


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """The picture, for a block that only reads it. Raises `InputError` where that fails, or for too many pixels."""
    try:
        if not file.is_file():
            raise OSError("it is no file")
        with Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > LARGEST:
                raise ValueError(f"its {picture.width}x{picture.height} pixels are more than {LARGEST}")
            yield picture
    except Exception as error:  # what the file holds decides where Pillow stops, and with what
        raise InputError(f"{file} cannot be read as a picture ({reason(error)}).") from error
