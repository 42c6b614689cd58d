"""The tail of a ConvNet block, instance norm, ReLU and 2x2 average pool, as ordinary differentiable operations."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _at_least_single(function: Callable) -> Callable:
    """Compute in float32 where the tensors have fewer bits, and round the results only."""

    @functools.wraps(function)
    def widened(x: Tensor, *others, **options):
        compute = torch.promote_types(x.dtype, torch.float32)
        if compute == x.dtype:
            return function(x, *others, **options)
        others = [one.to(compute) if isinstance(one, Tensor) else one for one in others]
        options = {name: one.to(compute) if isinstance(one, Tensor) else one for name, one in options.items()}
        result = function(x.to(compute), *others, **options)
        return tuple(one.to(x.dtype) for one in result) if isinstance(result, tuple) else result.to(x.dtype)

    return widened


@_at_least_single
def norm_relu_pool(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, norm: bool = True
) -> Tensor:
    """Instance norm, scale and shift, ReLU, 2x2 average pool of stride 2 (the last row or column of an odd side is
    dropped by the pool, not by the norm).

    Args:
        x: (N, C, H, W) floating.
        weight, bias: (C,), or (G, C) with N a multiple of G: row g serves the g-th run of N / G images, as in a stack
            of G networks. None: 1 and 0.
        eps: added to the biased variance of each (H, W) plane.
        norm: False leaves out the normalisation (weight and bias still apply).

    Returns: (N, C, H // 2, W // 2).
    """
    return pooled(_affine(_normalised(x, eps)[0] if norm else x, weight, bias).relu())


@_at_least_single
def norm_relu_pool_tangent(
    x: Tensor,
    dx: Tensor,
    weight: Tensor | None = None,
    dweight: Tensor | None = None,
    bias: Tensor | None = None,
    dbias: Tensor | None = None,
    eps: float = 1e-5,
    norm: bool = True,
) -> tuple[Tensor, Tensor]:
    """The value of `norm_relu_pool` and its derivative in the direction (dx, dweight, dbias).

    A direction that is None is zero. Both results are differentiable in all six tensors. The derivative of ReLU at 0
    is 0.
    """
    hidden, tangent = x, dx
    if norm:
        hidden, deviation = _normalised(x, eps)
        centred = dx - dx.mean((2, 3), keepdim=True)
        tangent = (centred - hidden * (hidden * dx).mean((2, 3), keepdim=True)) / deviation
    value = _affine(hidden, weight, bias)
    tangent = _affine(tangent, weight, dbias)
    if dweight is not None:
        tangent = tangent + hidden * _per_image(dweight, x)
    return pooled(value.relu()), pooled(torch.where(value <= 0, 0, tangent))


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x with mean 0 and variance 1 in every plane, and the (N, C, 1, 1) deviations."""
    centred = x - x.mean((2, 3), keepdim=True)
    deviation = (centred.square().mean((2, 3), keepdim=True) + eps).sqrt()
    return centred / deviation, deviation


def _per_image(rows: Tensor, x: Tensor) -> Tensor:
    """(C,) or (G, C) coefficients as (N, C, 1, 1)."""
    rows = rows[None] if rows.dim() == 1 else rows
    return rows.repeat_interleave(len(x) // len(rows), 0)[..., None, None]


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = x * _per_image(weight, x)
    return x if bias is None else x + _per_image(bias, x)


def pooled(x: Tensor) -> Tensor:
    """The mean of every 2x2 cell; the last row or column of an odd side belongs to none."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    if x.numel() == 0 or height * width == 0:  # torch refuses an empty result
        return x[:, :, :height, :width]
    return F.avg_pool2d(x, 2)
