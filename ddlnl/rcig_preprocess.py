"""RCIG's preprocessing: published per-channel normalisation, then ZCA whitening with a relative ridge.

Both are affine, so they are one `Preprocessing`; grey images are normalised only.
"""

from __future__ import annotations

import numpy as np
import torch

from ddlnl import preprocess
from ddlnl.errors import InputError
from ddlnl.preprocess import Preprocessing, to_float

RIDGE = 0.1  # of the mean eigenvalue
LARGEST = 64  # pixels; beyond that the transform would not fit into memory
_AT_ONCE = 5000  # images
PUBLISHED = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2861,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny_imagenet": ((0.4759, 0.4481, 0.3926), (0.2763, 0.2687, 0.2813)),
}


def fit(images: np.ndarray, dataset: str = "", device: torch.device | str = "cpu") -> Preprocessing:
    """Fit on uint8 (N, H, W, C) training images; labels play no role.

    Normalisation has the published constants of `dataset`, else those of the images. With S the covariance (divided by
    N) of the normalised, flattened images and r = 0.1 trace(S) / D, the whitening is (S + r I)^-1/2, in float64 on
    `device`. Where there are fewer images than dimensions, eigenvalues beyond the N-th are 1, as published. Raises
    `InputError` for colour images of more than 64 pixels.
    """
    size, channels = images.shape[1], images.shape[3]
    if channels > 1 and size > LARGEST:
        raise InputError(
            f"RCIG whitens colour images of up to {LARGEST} pixels, and these have {size}; smaller ones are allowed."
        )
    constants = [torch.tensor(one) for one in PUBLISHED.get(dataset, ())]
    normalise = Preprocessing("normalise", *constants) if constants else preprocess.fit(images, "normalise", dataset)
    if channels == 1:
        return normalise
    mean, covariance = _moments(images, torch.device(device))
    spread = normalise.scale.to(mean).repeat_interleave(size * size)
    covariance /= torch.outer(spread, spread)
    values, vectors = torch.linalg.eigh(covariance)
    values += RIDGE * covariance.trace() / len(values)
    values[: max(0, len(values) - len(images))] = 1
    whiten = (vectors * values.rsqrt()) @ vectors.T / spread[:, None]
    unwhiten = (vectors * values.sqrt()) @ vectors.T * spread
    return Preprocessing(
        "zca-relative", mean.float().cpu(), whiten=whiten.float().cpu(), unwhiten=unwhiten.float().cpu()
    )


def _moments(images: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (D,) and covariance (D, D) in float64 of images flattened in (C, H, W) order."""
    count, size = len(images), images[0].size
    total = torch.zeros(size, dtype=torch.float64, device=device)
    second = torch.zeros(size, size, dtype=torch.float64, device=device)
    for start in range(0, count, _AT_ONCE):
        flat = to_float(images[start : start + _AT_ONCE]).flatten(1).to(device).double()
        total += flat.sum(0)
        second.addmm_(flat.T, flat)
    mean = total / count
    return mean, second.div_(count).sub_(torch.outer(mean, mean))
