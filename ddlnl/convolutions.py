"""The convolution of a ConvNet's block with its tangents, by whichever way was measured fastest.

On a CPU in float32: Winograd's from 64 channels on; in the first layer, whose three channels leave oneDNN's gradient of
the images at a tenth of its speed, that gradient as another convolution. Everything else is torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddlnl import winograd

MANY, FEW = 64, 4  # channels
SIDES = range(4, 65)  # below, a tile is mostly padding; above, the dense products with a side's tiles cost too much


Move = tuple[Tensor | None, Tensor]


def layout(tensor: Tensor) -> torch.memory_format:
    """What convolutions and blocks are fastest in; the block kernels for CUDA read contiguous tensors."""
    return torch.channels_last if tensor.is_cpu else torch.contiguous_format


def convolve(x: Tensor, weight: Tensor, moves: Sequence[Move], padding: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
    """W * x, and W * dx + dW * x for each move (dx, dW), for (N, C, H, W) x and (K, C, 3, 3) W.

    dx None: x does not move. Differentiable once in every tensor.
    """
    if is_winograd(x, padding):
        return _winograd(x, weight, moves)
    if _plain(x, padding) and x.shape[1] <= FEW:
        return _direct(x, weight, moves, _Narrow.apply)
    return _direct(x, weight, moves, lambda x, weight: F.conv2d(x, weight, padding=padding))


def is_winograd(x: Tensor, padding: tuple[int, int]) -> bool:
    """Whether 3x3 convolutions of x are computed as Winograd's products."""
    return _plain(x, padding) and x.shape[1] >= MANY and all(side in SIDES for side in x.shape[2:])


def _plain(x: Tensor, padding: tuple[int, int]) -> bool:
    return padding == (1, 1) and x.is_cpu and x.dtype in (torch.float32, torch.float64)


def _direct(x, weight, moves, convolution) -> tuple[Tensor, list[Tensor]]:
    value, tangents = convolution(x, weight), []
    for dx, dweight in moves:
        tangent = convolution(x, dweight)
        tangents.append(tangent if dx is None else tangent.add_(convolution(dx, weight)))
    return value, tangents


def _winograd(x, weight, moves) -> tuple[Tensor, list[Tensor]]:
    size, x, weight = x.shape[2:], winograd.lift(x), winograd.lift_weight(weight)
    value, tangents = winograd.lower(torch.bmm(x, weight), size), []
    for dx, dweight in moves:
        tangent = torch.bmm(x, winograd.lift_weight(dweight))
        if dx is not None:
            tangent.baddbmm_(winograd.lift(dx), weight)
        tangents.append(winograd.lower(tangent, size))
    return value, tangents


class _Narrow(torch.autograd.Function):
    """A convolution with padding 1 of images with few channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        by_x = _pixels_gradient(gradient, weight) if ctx.needs_input_grad[0] else None
        by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = torch.nn.grad.conv2d_weight(x, weight.shape, gradient, padding=1)
        return by_x, by_weight


def _pixels_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the images, 2x2 pixels of every channel at once: one convolution of stride 2 with four copies of
    the weight, each where its pixel sees it."""
    height, width = gradient.shape[2:]
    count, channels = weight.shape[:2]
    copies = weight.new_zeros(channels, 2, 2, count, 4, 4)
    mirrored = weight.flip(2, 3).transpose(0, 1)
    for i in range(2):
        for j in range(2):
            copies[:, i, j, :, i : i + 3, j : j + 3] = mirrored
    if height % 2 or width % 2:
        gradient = F.pad(gradient, (0, width % 2, 0, height % 2))
    pixels = F.conv2d(gradient, copies.flatten(0, 2), stride=2, padding=1)
    return F.pixel_shuffle(pixels, 2)[..., :height, :width]
