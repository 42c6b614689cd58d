"""Whether a precision is fine enough to distil in: its gradient must point where that in float32 does."""

from __future__ import annotations

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
