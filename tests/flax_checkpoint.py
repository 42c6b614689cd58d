"""A checkpoint as the published code of RCIG writes it: msgpack by flax."""

from __future__ import annotations

import struct

import numpy as np


def pack(value):
    """msgpack as flax writes it."""
    if isinstance(value, dict):
        body = b"".join(pack(key) + pack(one) for key, one in value.items())
        return b"\xde" + struct.pack(">H", len(value)) + body
    if isinstance(value, (list, tuple)):
        return bytes([0x90 + len(value)]) + b"".join(map(pack, value))
    if isinstance(value, str):
        return b"\xd9" + bytes([len(value)]) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, np.ndarray):
        content = pack([list(value.shape), value.dtype.name, value.tobytes()])
        return b"\xc9" + struct.pack(">Ib", len(content), 1) + content
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if value is None:
        return b"\xc0"
    return bytes([value]) if 0 <= value < 128 else b"\xd3" + struct.pack(">q", value)


def checkpoint(**changes):
    source = np.random.default_rng(0)
    images = source.normal(size=(4, 8, 8, 3)).astype(np.float32)
    labels = source.normal(size=(4, 2)).astype(np.float32)
    average = {"x_proto": images, "y_proto": labels, "temp": np.asarray(0.3, np.float32)} | changes
    return {"step": 15000, "params": {"x_proto": images + 1, "y_proto": labels}, "ema_average": average}
