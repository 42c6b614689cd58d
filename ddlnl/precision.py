"""What a precision means for convolutions, and whether it is fine enough to distil in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ddlnl.errors import InputError

LEAST_COSINE = 0.999


def require_direction(gradient: Tensor, exact: Tensor, precision: str, name: str) -> None:
    """Raise `InputError` unless `gradient`, of the `name`, has a cosine of at least 0.999 with `exact`."""
    cosine = float(torch.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0))
    if not cosine >= LEAST_COSINE:
        raise InputError(
            f"In the precision {precision!r} the gradient of the {name} has a cosine of {cosine:.4f} with that in "
            f"float32, and it must have {LEAST_COSINE}; for these data only 'float32' is allowed."
        )


@contextlib.contextmanager
def convolutions(precision: str) -> Iterator[None]:
    """Convolutions of float32 tensors on a GPU round their factors to TF32 where that is the precision, and only there.

    torch itself lets cuDNN do so by default. A CPU computes in float32 either way.
    """
    cudnn = torch.backends.cudnn.conv
    before = cudnn.fp32_precision
    cudnn.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        cudnn.fp32_precision = before
