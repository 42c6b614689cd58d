"""A flax checkpoint (msgpack), read as data.

Nothing is made but dictionaries, lists, numbers, texts and views of the file's own bytes as numeric arrays. Every
length is checked against what is left of the file, so memory stays within the file's size.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ddlnl.errors import InputError, reason

# Bounds on memory and time; the largest published set has half a gigabyte with its optimiser.
MAX_BYTES = 2**30
MAX_OBJECTS = 10**5
MAX_DEPTH = 32
_TYPES = {"bool", *(f"{kind}{size}" for kind in ("int", "uint") for size in (8, 16, 32, 64)), "float32", "float64"}
_ARRAY, _SCALAR = 1, 3  # flax's extension types; others are refused
_NUMBERS = dict(zip(range(0xCA, 0xD4), (">f", ">d", ">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q"), strict=True))
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_LENGTHS = {  # byte: what follows a length of that format
    **{0xC4: ("bytes", ">B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I")},
    **{0xD9: ("text", ">B"), 0xDA: ("text", ">H"), 0xDB: ("text", ">I")},
    **{0xDC: ("list", ">H"), 0xDD: ("list", ">I"), 0xDE: ("dictionary", ">H"), 0xDF: ("dictionary", ">I")},
    **{0xC7: ("extension", ">B"), 0xC8: ("extension", ">H"), 0xC9: ("extension", ">I")},
}
_FIXED = {0xD4 + power: 2**power for power in range(5)}  # extensions of 1, 2, 4, 8 and 16 bytes


def read(path: str | Path) -> dict[str, Any]:
    """The tree in the file: dictionaries with text keys, lists, numbers, texts and read-only arrays.

    Raises `InputError` on anything else, and on a file that is too large, too deep or cut short.
    """
    try:
        path = Path(path)
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        reader = _Reader(memoryview(path.read_bytes()))
        tree = reader.value()
        if reader.left or not isinstance(tree, dict):
            raise ValueError("it is not one dictionary")
        return tree
    except (OSError, ValueError, OverflowError, struct.error) as error:
        raise InputError(
            f"{path} was refused ({reason(error)}); only a flax checkpoint of arrays can be read."
        ) from error


class _Reader:
    """The bytes of one object and what it holds."""

    def __init__(self, data: memoryview, arrays: bool = True) -> None:
        self.data, self.place, self.objects, self.arrays = data, 0, 0, arrays

    @property
    def left(self) -> int:
        return len(self.data) - self.place

    def take(self, count: int) -> memoryview:
        if count > self.left:
            raise ValueError("it ends too early")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, form: str) -> int | float:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self, depth: int = 0) -> Any:
        self.objects += 1
        if depth > MAX_DEPTH or self.objects > MAX_OBJECTS:
            raise ValueError(f"it is deeper than {MAX_DEPTH} or has more than {MAX_OBJECTS} objects")
        byte = self.number(">B")
        if byte < 0x80 or byte >= 0xE0:
            return byte if byte < 0x80 else byte - 0x100
        if byte < 0xC0:
            kind = "dictionary" if byte < 0x90 else "list" if byte < 0xA0 else "text"
            return self.sized(kind, byte & (0x1F if kind == "text" else 0x0F), depth)
        if byte in _CONSTANTS:
            return _CONSTANTS[byte]
        if byte in _NUMBERS:
            return self.number(_NUMBERS[byte])
        if byte in _LENGTHS:
            kind, form = _LENGTHS[byte]
            return self.sized(kind, self.number(form), depth)
        if byte in _FIXED:
            return self.sized("extension", _FIXED[byte], depth)
        raise ValueError(f"it has the byte {byte:#x} where an object begins")

    def sized(self, kind: str, count: int, depth: int) -> Any:
        if kind == "bytes":
            return self.take(count)
        if kind == "text":
            return str(self.take(count), "utf-8")
        if kind == "list":
            return [self.value(depth + 1) for _ in range(self.within(count))]
        if kind == "extension":
            if not self.arrays:
                raise ValueError("an array lies within another")
            return _array(self.number(">b"), self.take(count))
        tree: dict[str, Any] = {}
        for _ in range(self.within(count)):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in tree:
                raise ValueError("a key is not a text or occurs twice")
            tree[key] = self.value(depth + 1)
        return tree

    def within(self, count: int) -> int:
        if count > self.left:
            raise ValueError("it ends too early")
        return count


def _array(code: int, content: memoryview) -> np.ndarray:
    """flax packs an array as one more object: (shape, name of the type, bytes in C order)."""
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"it has an extension of type {code}")
    reader = _Reader(content, arrays=False)
    parts = reader.value(MAX_DEPTH - 2)
    if reader.left or not isinstance(parts, list) or len(parts) != 3:
        raise ValueError("an array is not a shape, a type and bytes")
    shape, name, data = parts
    name = str(name, "ascii") if isinstance(name, memoryview) else name
    if not isinstance(name, str) or name not in _TYPES or not isinstance(data, memoryview):
        raise ValueError(f"an array has the type {name!r}")
    sizes = isinstance(shape, list) and all(isinstance(side, int) and side >= 0 for side in shape)
    if not sizes or prod(shape) * np.dtype(name).itemsize != len(data):
        raise ValueError(f"an array of {len(data)} bytes has the shape {shape!r}")
    return np.frombuffer(data, np.dtype(name).newbyteorder("<")).reshape(shape)
