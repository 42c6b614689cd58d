"""A torch.save file of integer arrays, read as data.

Loading a pickle runs what it asks for, and even an unpickler that admits only numpy hands numpy states that can corrupt
memory. So nothing is unpickled here: a small machine follows the opcodes, knows dictionaries, lists, tuples, numbers,
texts and one-dimensional integer arrays, has its own stand-ins for the five names such a file uses, and refuses
everything else.
"""

from __future__ import annotations

import pickletools
import reprlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ddlnl.archives import COMPRESSIONS
from ddlnl.errors import InputError, reason

# Bounds on memory and time. The largest CIFAR-N file has 2.4 MB, the longest 100,307 opcodes.
MAX_BYTES = 16 * 2**20
MAX_OPCODES = 10**6
ALLOWED = "only what torch.save wrote of a dictionary of integer arrays and lists can be read"

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_INTEGERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE": None, "EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read(path: Path) -> dict[str, Any]:
    """The dictionary in the file: text to (N,) integer array, list or number. Raises `InputError` on anything else."""
    try:
        with zipfile.ZipFile(path) as file:
            content = Machine().run(description(file, MAX_BYTES)[1])
        if not isinstance(content, dict):
            raise ValueError("it does not hold a dictionary")
    except Exception as error:  # what the file holds decides where the zip reader, the decoder or the machine stops
        raise InputError(f"{path} was refused ({reason(error)}), and {ALLOWED}.") from error
    return {key: value.values if isinstance(value, _Array) else value for key, value in content.items()}


def description(file: zipfile.ZipFile, most: int) -> tuple[str, bytes]:
    """Name and content of the pickle in a torch.save file, of `most` bytes. Raises ValueError where it is larger."""
    (member,) = (member for member in file.infolist() if member.filename.endswith("/data.pkl"))
    if member.file_size > most or member.compress_type not in COMPRESSIONS:
        raise ValueError(f"its content is larger than {most} bytes, or compressed in a way that torch does not write")
    return member.filename, file.read(member)


def shown(value: Any) -> str:
    """A value of the file for reading. A few hundred opcodes make nested tuples whose whole text fills any memory, and
    whose hash takes any time: they are shown in part, and never looked up."""
    return _SHORT.repr(value)


class _Dtype:
    """Stands for a numpy type, which must be an integer such as "i8"; BUILD gives its byte order."""

    def __init__(self, code: str, _align: bool, _copy: bool) -> None:
        if not isinstance(code, str) or code not in _INTEGERS:
            raise ValueError(f"an array has the type {shown(code)}")
        self.type = np.dtype(code)

    def build(self, state: tuple) -> None:
        _version, order, *structure = state
        if structure != [None, None, None, -1, -1, 0]:
            raise ValueError("an array has a structured type")
        self.type = self.type.newbyteorder(order)


class _Array:
    """Stands for a numpy array, which must be one-dimensional; BUILD fills it."""

    def __init__(self, _class: None, _shape: tuple, _kind: bytes) -> None:
        self.values: np.ndarray | None = None

    def build(self, state: tuple) -> None:
        _version, shape, dtype, _fortran_order, data = state
        values = np.frombuffer(data, dtype.type)
        if shape != values.shape:
            raise ValueError(f"an array has the shape {shown(shape)} and {values.size} values")
        self.values = values


class Machine:
    """The stack, the marks and the memo of pickle's protocol 2, for the opcodes that such a file needs."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.encoded = 0
        self.names = {
            "numpy.core.multiarray _reconstruct": _Array,  # numpy 1
            "numpy._core.multiarray _reconstruct": _Array,  # numpy 2
            "numpy ndarray": None,
            "numpy dtype": _Dtype,
            "_codecs encode": self.encode,
        }

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count == MAX_OPCODES:
                raise ValueError(f"it has more than {MAX_OPCODES} opcodes")
            self.step(opcode.name, argument)
        (content,) = self.stack
        return content

    def step(self, opcode: str, argument: Any) -> None:
        match opcode:
            case "PROTO" | "STOP":
                pass
            case "BININT" | "BININT1" | "BININT2" | "BINUNICODE":
                self.stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append(_CONSTANTS[opcode])
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST":
                self.stack.append([])
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE" | "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self.pop(_TUPLES[opcode])))
            case "APPEND" | "APPENDS":
                items = self.pop(1 if opcode == "APPEND" else None)
                self.stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = self.pop(2 if opcode == "SETITEM" else None)
                self.stack[-1].update(zip(map(_text, items[::2]), items[1::2], strict=True))
            case "GLOBAL":
                if argument not in self.names:
                    raise ValueError(f"it refers to {argument!r}")
                self.stack.append(self.names[argument])
            case "REDUCE":
                stand_in, arguments = self.pop(2)
                self.stack.append(stand_in(*arguments))
            case "BUILD":
                (state,) = self.pop(1)
                self.stack[-1].build(state)
            case _:
                raise ValueError(f"it has the opcode {opcode}")

    def pop(self, count: int | None) -> list[Any]:
        """The last `count` values of the stack, or for None those since the last mark."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def encode(self, text: str, codec: str) -> bytes:
        """Stands for codecs.encode, with which protocol 2 writes bytes as text."""
        self.encoded += len(text)
        if codec != "latin1" or self.encoded > MAX_BYTES:  # one text can be named any number of times
            raise ValueError(f"it encodes {self.encoded} characters as {shown(codec)}")
        return text.encode("latin1")


def _text(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError("a key is not a text")
    return key
