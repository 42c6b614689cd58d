"""Pictures that are broken, or made to break what reads them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = {"PNG": "png", "JPEG": "jpg", "GIF": "png", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "PPM": "ppm"}
SIGNATURE = b"\x89PNG\r\n\x1a\n"
PROGRAM = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/tmp) run\nshowpage\n"  # Pillow would ask Ghostscript


def whole(kind: str, side: int = 8) -> bytes:
    """A picture with noise in it, in one of `KINDS`."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int = 8, height: int = 8, before: bytes = b"", after: bytes = b"") -> bytes:
    """A black PNG of 8x8 pixels whose head may say something else, with chunks before and after its data."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    return SIGNATURE + head + before + data + after + chunk(b"IEND", b"")


def hostile() -> dict[str, bytes]:
    """Pictures that no reader can want, by name."""
    text = zlib.compress(bytes(2**26), 9)
    bomb = chunk(b"zTXt", b"a\0\0" + text)
    return {
        "text that grows": png(before=bomb),
        "text that grows after the pixels": png(after=bomb),
        "many texts that grow": png(before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20), 9)) * 100),
        "a head of 40000x40000": png(40000, 40000),
        "a head of 9000x9000": png(9000, 9000),
        "a head of 2^31x2^31": png(2**31 - 1, 2**31 - 1),
        "a head of 0x8": png(0, 8),
        "a head without pixels": png()[:33] + chunk(b"IEND", b""),
        "a program": PROGRAM,
        "nothing": b"",
        "a signature": SIGNATURE,
        "zeros": bytes(1000),
    }


def damaged(source: np.random.Generator, each: int) -> Iterator[tuple[str, bytes]]:
    """(end of the name, content) of pictures of every kind with some bytes flipped, cut off or put in."""
    for kind, suffix in KINDS.items():
        good = whole(kind)
        for _ in range(each):
            content, place = bytearray(good), int(source.integers(0, len(good)))
            match int(source.integers(0, 3)):
                case 0:
                    for at in source.integers(0, min(len(good), int(source.choice([64, 10**6]))), 3):
                        content[at] = int(source.integers(0, 256))
                case 1:
                    del content[place:]
                case 2:
                    content[place:place] = source.bytes(int(source.integers(1, 40)))
            yield suffix, bytes(content)


def folder(root: Path, name: str, content: bytes | None) -> Path:
    """Two classes with a good picture each, and this one; None stands for a pipe that nobody writes to."""
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        (root / label / "0.png").write_bytes(whole("PNG"))
    if content is None:
        os.mkfifo(root / "cat" / name)
    else:
        (root / "cat" / name).write_bytes(content)
    return root
