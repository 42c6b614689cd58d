"""Published sets of DATM: images, label logits and the student's step size as its code leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ddlnl import torch_tensor
from ddlnl.errors import InputError


class Published(NamedTuple):
    """images (n, C, H, W) float32, preprocessed; logits (n, K) float32; the step size."""

    images: Tensor
    logits: Tensor
    step_size: float


def read(folder: str | Path) -> Published:
    """The set in `images_best.pt`, `labels_best.pt` and `lr_best.pt` of a folder; nothing in them is executed.

    Raises `InputError` where a file is not one tensor or the three do not fit together.
    """
    folder = Path(folder)
    images, logits, step = (torch_tensor.read(folder / f"{name}_best.pt") for name in ("images", "labels", "lr"))
    fits = images.dim() == 4 and logits.dim() == 2 and len(images) == len(logits) > 0 and step.numel() == 1
    floats = images.is_floating_point() and logits.is_floating_point()
    images, logits = images.float(), logits.float()
    if not (fits and floats and all(bool(torch.isfinite(one).all()) for one in (images, logits))):
        raise InputError(
            f"{folder} holds images of shape {tuple(images.shape)}, labels of shape {tuple(logits.shape)} and a step "
            f"size of shape {tuple(step.shape)}; they must be finite numbers (n, C, H, W), (n, K) and one."
        )
    size = float(step)
    if not 0 < size < float("inf"):
        raise InputError(f"{folder / 'lr_best.pt'} holds the step size {size}, and it must be positive and finite.")
    return Published(images, logits, size)
