"""Published sets of RCIG: the averaged images and labels of a released checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddlnl import flax_file
from ddlnl.errors import InputError


class Published(NamedTuple):
    """images (n, C, H, W) float32 in the space of the preprocessing "zca-relative", labels (n, K) float32; both without
    mirror images."""

    images: Tensor
    labels: Tensor


def read(path: str | Path, average: bool = True) -> Published:
    """The set in a flax checkpoint of the published code: its moving average, or (`average` False) the last variables.

    Nothing in the file is executed. Images are stored as (n, H, W, C) in whitened space. Raises `InputError` where the
    file does not hold such a set.
    """
    tree = flax_file.read(path)
    found = tree.get("ema_average" if average else "params")
    arrays = [found.get(name) for name in ("x_proto", "y_proto")] if isinstance(found, dict) else []
    if not all(isinstance(one, np.ndarray) and one.dtype.kind == "f" for one in arrays) or not arrays:
        raise InputError(f"{path} holds no distilled set; a checkpoint of RCIG has x_proto and y_proto in ema_average.")
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        images, labels = (torch.from_numpy(one.astype(np.float32)) for one in arrays)
    fits = images.dim() == 4 and labels.dim() == 2 and len(images) == len(labels) > 0 and labels.shape[1] > 0
    if not fits or images.shape[1] != images.shape[2] or images.shape[3] not in (1, 3) or len(labels) % labels.shape[1]:
        raise InputError(
            f"{path} holds images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}; they must "
            "be (n, H, H, 1 or 3) and (n, K) with as many images for every class."
        )
    if not bool(torch.isfinite(images).all() and torch.isfinite(labels).all()):
        raise InputError(f"{path} holds numbers that are not finite, and all of them must be.")
    return Published(images.permute(0, 3, 1, 2).contiguous(), labels)
