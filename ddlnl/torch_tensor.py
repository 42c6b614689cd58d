"""A torch.save file of one tensor, read as data: `torch_file`'s machine with stand-ins for torch's own names."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddlnl.errors import InputError, reason
from ddlnl.torch_file import Machine, description, shown

MAX_BYTES = 2**30  # of the numbers; the largest published set has 250 MB
_MAX_PICKLE = 2**16  # of what describes them
_TYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "LongStorage": "<i8"}


def read(path: str | Path) -> Tensor:
    """The tensor in the file, contiguous: float32, float64 or int64. Raises `InputError` on anything else."""
    try:
        with zipfile.ZipFile(path) as file:
            name, content = description(file, _MAX_PICKLE)
            values = _TensorMachine(file, PurePosixPath(name).parent).run(content)
        if not isinstance(values, np.ndarray):
            raise ValueError("it does not hold a tensor")
        return torch.from_numpy(values.copy())
    except Exception as error:  # what the file holds decides where the zip reader, the decoder or the machine stops
        raise InputError(
            f"{path} was refused ({reason(error)}), and only what torch.save wrote of one tensor can be read."
        ) from error


class _TensorMachine(Machine):
    """Knows storages, which lie beside the pickle, and how torch rebuilds a tensor from one."""

    def __init__(self, file: zipfile.ZipFile, folder: PurePosixPath) -> None:
        super().__init__()
        self.file, self.folder, self.loaded = file, folder, False
        self.names = {
            "torch._utils _rebuild_tensor_v2": _tensor,
            "torch._utils _rebuild_parameter": lambda values, *_: values,
            "collections OrderedDict": lambda: None,
            **{f"torch {name}": kind for name, kind in _TYPES.items()},
        }

    def step(self, opcode: str, argument: Any) -> None:
        if opcode == "BINPERSID":
            (described,) = self.pop(1)
            self.stack.append(self.storage(*described))
        else:
            super().step(opcode, argument)

    def storage(self, what: str, kind: str, key: str, _device: str, count: int) -> np.ndarray:
        if what != "storage" or kind not in _TYPES.values() or not key.isdecimal():
            raise ValueError(f"it refers to {shown(what)} {shown(key)} of type {shown(kind)}")
        member = self.file.getinfo(str(self.folder / "data" / key))
        if self.loaded or member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it holds more than one storage, or a compressed one")
        self.loaded = True
        if member.file_size > MAX_BYTES or member.file_size != count * np.dtype(kind).itemsize:
            raise ValueError(f"a storage of {shown(count)} numbers has {member.file_size} bytes")
        return np.frombuffer(self.file.read(member), kind)


def _tensor(storage: np.ndarray, offset: int, shape: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """The part of a storage that a tensor is, which must not repeat numbers or reach beyond its end."""
    whole = [offset, *shape, *stride]
    if not all(type(one) is int and one >= 0 for one in whole) or len(shape) != len(stride) or len(shape) > 8:
        raise ValueError(f"a tensor has the shape {shown(shape)} and stride {shown(stride)}")
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if prod(shape) > len(storage) or (prod(shape) and last >= len(storage)):
        raise ValueError("a tensor reaches beyond its storage")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
