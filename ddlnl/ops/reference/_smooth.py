"""The tail of a block without a norm and with softplus, as ordinary differentiable operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ddlnl.ops.reference._block import pooled


def softplus_pool(x: Tensor, beta: float) -> Tensor:
    """softplus(beta x) / beta and a 2x2 average pool, for (N, C, H, W) x; odd sides as in `norm_relu_pool`."""
    # F.softplus is linear from `threshold` on, and slow where the exponential is subnormal.
    return pooled(F.relu(x) - F.logsigmoid((beta * x).abs()) / beta)


def softplus_pool_tangent(x: Tensor, dx: Tensor, beta: float) -> Tensor:
    """The derivative of `softplus_pool` in the direction dx."""
    return pooled(torch.sigmoid(beta * x) * dx)


def softplus_pool_backward(gradient: Tensor, x: Tensor, beta: float) -> Tensor:
    """The transpose of `softplus_pool_tangent` as a map of dx, applied to an (N, C, H // 2, W // 2) gradient."""
    height, width = x.shape[2:]
    spread = gradient.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    return torch.sigmoid(beta * x) * F.pad(spread, (0, width % 2, 0, height % 2))
