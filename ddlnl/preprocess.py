"""Invertible preprocessing fitted on training images: per-channel normalisation and ZCA whitening."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddlnl.errors import InputError, nearest

KINDS = ("normalise", "normalise-published", "zca", "zca-relative")
ZCA_RIDGE = 0.1  # kornia's eps in the published DATM runs
RELATIVE_RIDGE = 0.1  # of the mean eigenvalue, in the published RCIG runs
LARGEST = 64  # pixels; beyond that RCIG's transform would not fit into memory
# The constants of the published DANCE code; it uses the CIFAR-10 ones for CIFAR-100 too.
PUBLISHED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "tiny_imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# Those of the published RCIG code.
PUBLISHED_RELATIVE = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2861,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny_imagenet": ((0.4759, 0.4481, 0.3926), (0.2763, 0.2687, 0.2813)),
}


def to_float(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) images as float32 (N, C, H, W) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)


@dataclass(frozen=True)
class Preprocessing:
    """An affine map of images and its inverse.

    kind "normalise": `mean`, `scale` (C,), x -> (x - mean) / scale. kinds "zca" and "zca-relative": `mean` (D,) and
    `whiten`, `unwhiten` (D, D), x -> (x - mean) whiten on images flattened in (C, H, W) order. All float32.
    """

    kind: str
    mean: Tensor
    scale: Tensor | None = None
    whiten: Tensor | None = None
    unwhiten: Tensor | None = None

    def apply(self, images: Tensor) -> Tensor:
        """(N, C, H, W) floats in [0, 1] to network space; differentiable."""
        mean = self.mean.to(images)
        if self.scale is not None:
            return (images - mean[:, None, None]) / self.scale.to(images)[:, None, None]
        return ((images.flatten(1) - mean) @ self.whiten.to(images)).view_as(images)

    def invert(self, images: Tensor) -> Tensor:
        """Network space back to pixel space; values may leave [0, 1] by rounding or by optimisation."""
        mean = self.mean.to(images)
        if self.scale is not None:
            return images * self.scale.to(images)[:, None, None] + mean[:, None, None]
        return (images.flatten(1) @ self.unwhiten.to(images) + mean).view_as(images)

    def tensors(self) -> dict[str, Tensor]:
        """What defines the map, by name; `Preprocessing.of(kind, tensors)` is the same map again."""
        return {
            name: value
            for name in ("mean", "scale", "whiten", "unwhiten")
            if (value := getattr(self, name)) is not None
        }

    @classmethod
    def of(cls, kind: str, tensors: Mapping[str, Tensor]) -> Preprocessing:
        """The map that `fit` with this kind made, from its tensors."""
        return cls(kind if "whiten" in tensors else "normalise", **tensors)

    @property
    def hash(self) -> str:
        """16 hex digits that name the map: kind and tensors."""
        digest = hashlib.sha256(self.kind.encode())
        for name, value in self.tensors().items():
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def require_same(self, other: Preprocessing) -> None:
        """Raise `InputError` unless `other` is the same map: images of two spaces must never meet."""
        if self.hash != other.hash:
            raise InputError(
                f"Images preprocessed by {self.kind} {self.hash} and {other.kind} {other.hash} cannot be mixed; "
                "both must share one fitted preprocessing."
            )


def fit(images: np.ndarray, kind: str, dataset: str = "") -> Preprocessing:
    """Fit on uint8 (N, H, W, C) training images; labels play no role.

    "normalise": per-channel mean and standard deviation. "normalise-published": the constants of the published code for
    `dataset`, else as "normalise". "zca": as kornia's ZCAWhitening with eps 0.1 and unbiased covariance, computed in
    float64: covariance U diag(s) U', whiten = U diag((s + 0.1)^-1/2) U'. "zca-relative": RCIG's, below.
    """
    if kind not in KINDS:
        raise InputError(
            f"The preprocessing {kind!r} is unknown; it is one of {', '.join(KINDS)}." + nearest(kind, KINDS)
        )
    if kind == "normalise-published" and dataset in PUBLISHED:
        mean, scale = (torch.tensor(values) for values in PUBLISHED[dataset])
        return Preprocessing("normalise", mean, scale)
    if kind == "zca-relative":
        return _fit_relative(images, dataset)
    return _fit_zca(images) if kind == "zca" else _fit_channels(images)


def _fit_channels(images: np.ndarray) -> Preprocessing:
    levels = np.arange(256) / 255  # counting grey levels gives exact moments without a float copy of the images
    shares = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(images, 3, 0)])
    shares = shares / shares.sum(1, keepdims=True)
    mean = shares @ levels
    scale = np.sqrt((shares * (levels - mean[:, None]) ** 2).sum(1))
    if (scale == 0).any():
        raise InputError(
            "A colour channel of the training images is constant, so it cannot be normalised; every channel must vary."
        )
    return Preprocessing("normalise", torch.tensor(mean).float(), torch.tensor(scale).float())


def _fit_zca(images: np.ndarray) -> Preprocessing:
    total, second = _moments(images)
    mean = total / len(images)
    covariance = (second - len(images) * torch.outer(mean, mean)) / (len(images) - 1)
    values, vectors = torch.linalg.eigh(covariance)
    ridged = values.clamp(min=0) + ZCA_RIDGE
    whiten = (vectors * ridged.rsqrt()) @ vectors.T
    unwhiten = (vectors * ridged.sqrt()) @ vectors.T
    return Preprocessing("zca", mean.float(), whiten=whiten.float(), unwhiten=unwhiten.float())


def _fit_relative(images: np.ndarray, dataset: str) -> Preprocessing:
    """RCIG's: per-channel normalisation, then, for colour images, whitening with a relative ridge; one affine map.

    Normalisation has the published constants of `dataset`, else those of the images. With S the covariance (divided by
    N) of the normalised, flattened images and r = 0.1 trace(S) / D, the whitening is (S + r I)^-1/2 in float64. Where
    there are fewer images than dimensions, eigenvalues beyond the N-th are 1, as published. Raises `InputError` for
    colour images of more than 64 pixels.
    """
    count, size, channels = len(images), images.shape[1], images.shape[3]
    if channels > 1 and size > LARGEST:
        raise InputError(
            f"RCIG whitens colour images of up to {LARGEST} pixels, and these have {size}; smaller ones are allowed."
        )
    constants = [torch.tensor(one) for one in PUBLISHED_RELATIVE.get(dataset, ())]
    normalise = Preprocessing("normalise", *constants) if constants else _fit_channels(images)
    if channels == 1:
        return normalise
    total, second = _moments(images)
    mean, spread = total / count, normalise.scale.double().repeat_interleave(size * size)
    covariance = (second / count - torch.outer(mean, mean)) / torch.outer(spread, spread)
    values, vectors = torch.linalg.eigh(covariance)
    values += RELATIVE_RIDGE * covariance.trace() / len(values)
    values[: max(0, len(values) - count)] = 1
    whiten = (vectors * values.rsqrt()) @ vectors.T / spread[:, None]
    unwhiten = (vectors * values.sqrt()) @ vectors.T * spread
    return Preprocessing("zca-relative", mean.float(), whiten=whiten.float(), unwhiten=unwhiten.float())


def _moments(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Sum (D,) of images flattened in (C, H, W) order, and of their outer products (D, D), in float64."""
    size = images[0].size
    total, second = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for start in range(0, len(images), 5000):  # Tiny-ImageNet in float64 would be 10 GB at once
        flat = to_float(images[start : start + 5000]).flatten(1).double()
        total += flat.sum(0)
        second += flat.T @ flat
    return total, second
