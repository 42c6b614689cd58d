"""Logits of a ConvNet from a flat parameter vector, and their derivative along a direction of the parameters.

The dual forward carries a value x and its tangent dx: a convolution gives W * x and W * dx + dW * x, the rest of a
block is `ops.norm_relu_pool_tangent`, the linear layer as the convolution. Images do not move, so the first layer has
no dx. Ordinary reverse mode differentiates both results once, in images, parameters and direction: for
s = <v, gradient of a loss>, seeds in logits and tangent give every gradient of s without differentiating a backward
pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddlnl import ops
from ddlnl.convolutions import convolve, layout
from ddlnl.errors import InputError
from ddlnl.networks import ConvNet, NormReluPool, unflatten


def check(network: nn.Module) -> None:
    """Raise `InputError` unless `network` is one that this module can run."""
    if not isinstance(network, ConvNet) or not all(isinstance(one, NormReluPool) for one in network.blocks[1::2]):
        raise InputError(
            "Tangents need a ConvNet with norm 'instance' or 'none' and pooling 'avg'; this network is another."
        )


def logits(network: ConvNet, images: Tensor, parameters: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(N, K) logits of `network` with flat (P,) `parameters` on (N, C, H, W) images; differentiable once in both.

    dtype: what convolutions and blocks compute in (None: that of the parameters); the linear layer and the logits have
    that of the parameters. Raises `InputError` for a network that `check` refuses.
    """
    return _forward(network, images, parameters, None, dtype)[0]


def dual_logits(
    network: ConvNet, images: Tensor, parameters: Tensor, direction: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """`logits` and their derivative along the flat (P,) `direction` of the parameters, (N, K) each.

    Both can be differentiated once in images, parameters and direction.
    """
    return _forward(network, images, parameters, direction, dtype)


@dataclass(frozen=True)
class _Block:
    """The tensors of a block, or their tangents: all None where there is no direction.

    A bias before an instance norm has no effect and is left out; without a norm the operator of the tail adds it.
    """

    weight: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None


def _forward(network, images, parameters, direction, dtype) -> tuple[Tensor, Tensor | None]:
    check(network)
    dtype = dtype or parameters.dtype
    blocks, linear = _layers(network, parameters, dtype)
    along, (dweight, dbias) = _layers(network, direction, dtype)
    x, dx = images.to(dtype, memory_format=layout(images)), None
    for layer, block, d in zip(network.blocks[::2], blocks, along, strict=True):
        norm = block.scale is not None
        moves = [] if d.weight is None else [(dx, d.weight)]
        y, dy = convolve(x, block.weight, moves, layer.padding)
        if not dy:
            x = ops.norm_relu_pool(y, block.scale, block.shift, norm=norm)
        else:
            rows = block.scale, d.scale, block.shift, d.shift
            x, dx = ops.norm_relu_pool_tangent(y, *dy, *rows, norm=norm)
    x = x.flatten(1).to(parameters.dtype)
    value = F.linear(x, *linear)
    if dx is None:
        return value, None
    dx = dx.flatten(1).to(parameters.dtype)
    return value, F.linear(x, dweight, dbias) + F.linear(dx, linear[0])


def _layers(network: ConvNet, flat: Tensor | None, dtype: torch.dtype) -> tuple[list[_Block], tuple]:
    """The blocks, and weight and bias of the linear layer."""
    count = len(network.blocks) // 2
    if flat is None:
        return [_Block()] * count, (None, None)
    named = unflatten(flat, network)
    blocks = []
    for index in range(0, 2 * count, 2):
        norm = network.blocks[index + 1].weight is not None
        names = [f"blocks.{index}.weight", f"blocks.{index + 1}.weight", f"blocks.{index + norm}.bias"]
        blocks.append(_Block(*(named[name].to(dtype) if name in named else None for name in names)))
    return blocks, (named["classifier.weight"], named["classifier.bias"])
