"""RCIG's ConvNet without norm, with explicit first derivatives.

All parameters of a network are one flat vector, so that an optimiser step is one kernel and a tangent (a direction in
weight space) is a vector of the same layout. Nothing here needs nested automatic differentiation: the derivative in a
direction and its transpose are written out, and `dual` is made of ordinary operations that autograd can go through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddlnl import ops
from ddlnl.convolutions import convolve, layout
from ddlnl.errors import InputError, nearest
from ddlnl.fixed_convolutions import fix

ACTIVATIONS = ("softplus", "relu")
BETA = 60.0  # softplus(BETA a) / BETA
_CUT_STD = 0.87962566  # standard deviation of a normal variable cut at two of its own

Layer = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Network:
    """`depth` blocks of 3x3 convolution, activation and 2x2 average pool, then one linear layer.

    Widths double from block to block, starting at `width`. activation: "softplus" or "relu". Images have `channels`
    channels and `size` x `size` pixels; a grey image wider than 16 pixels is padded by 3 in the first convolution
    (28 pixels become 32). Raises `InputError` where the pools do not divide the image.
    """

    classes: int
    depth: int = 3
    width: int = 128
    size: int = 32
    channels: int = 3
    activation: str = "softplus"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"The activation {self.activation!r} is unknown; it is one of {', '.join(ACTIVATIONS)}."
                + nearest(self.activation, ACTIVATIONS)
            )
        if self.depth < 1 or self._side % 2**self.depth or not self._side:
            raise InputError(
                f"Images of {self.size} pixels do not go through {self.depth} pools of 2x2; the side (after padding "
                f"{self._side}) must be a multiple of 2 to the depth, and the depth at least 1."
            )

    @property
    def _wide_grey(self) -> bool:
        return self.channels == 1 and self.size > 16

    @property
    def _side(self) -> int:
        return self.size + 4 if self._wide_grey else self.size

    def padding(self, block: int) -> int:
        """Zeros around the input of a block."""
        return 3 if self._wide_grey and block == 0 else 1

    @property
    def features(self) -> int:
        """Length of the flattened output of the last block."""
        return self.width * 2 ** (self.depth - 1) * (self._side >> self.depth) ** 2

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parameters as they lie in the flat vector: kernel and bias of every layer.

        Those of convolutions lie as (3, 3, before, after), in which Winograd's products read them.
        """
        widths = [self.channels, *(self.width * 2**block for block in range(self.depth))]
        pairs = [((3, 3, before, after), (after,)) for before, after in pairwise(widths)]
        pairs.append(((self.classes, self.features), (self.classes,)))
        return tuple(shape for pair in pairs for shape in pair)

    @cached_property
    def parameters(self) -> int:
        """Length P of the flat vector."""
        return sum(prod(shape) for shape in self.shapes)

    @property
    def head(self) -> slice:
        """Where the kernel of the linear layer lies in the flat vector."""
        end = self.parameters - self.classes
        return slice(end - self.classes * self.features, end)

    def layers(self, flat: Tensor) -> list[Layer]:
        """A (P,) vector as (kernel, bias) of every layer, the linear one last: views, so gradients flow back.

        Kernels of convolutions are (after, before, 3, 3), as torch takes them.
        """
        pieces = flat.split([prod(shape) for shape in self.shapes])
        views = [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
        kernels = [view.permute(3, 2, 0, 1) if view.dim() == 4 else view for view in views[::2]]
        return list(zip(kernels, views[1::2], strict=True))

    def initialise(self, source: torch.Generator) -> Tensor:
        """A fresh (P,) float32 vector: LeCun normal kernels (deviation fan_in^-1/2, cut at 2 sigma), zero biases."""
        flat = torch.zeros(self.parameters)
        for kernel, _ in self.layers(flat):
            nn.init.trunc_normal_(kernel, 0.0, 1.0, -2.0, 2.0, source)
            kernel /= _CUT_STD * prod(kernel.shape[1:]) ** 0.5
        return flat


def pool(network: Network, before: Tensor) -> Tensor:
    """Activation and pool of pre-activations (N, c, H, W)."""
    smooth = network.activation == "softplus"
    return ops.softplus_pool(before, BETA) if smooth else ops.norm_relu_pool(before, norm=False)


def _pool_tangent(network: Network, before: Tensor, change: Tensor) -> Tensor:
    """The derivative of `_pool` in the direction `change`."""
    if network.activation == "softplus":
        return ops.softplus_pool_tangent(before, change, BETA)
    return ops.norm_relu_pool_tangent(before, change, norm=False)[1]


def _pool_transpose(network: Network, before: Tensor, cotangent: Tensor) -> Tensor:
    """The transpose of `_pool_tangent` as a map of the change."""
    if network.activation == "softplus":
        return ops.softplus_pool_backward(cotangent, before, BETA)
    with torch.enable_grad():
        leaf = before.detach().requires_grad_()
        return torch.autograd.grad(ops.norm_relu_pool(leaf, norm=False), leaf, cotangent)[0]


class _Block:
    """The primal pass of one chunk of images through one block, kept for derivatives at these weights.

    `before` (N, c', H, W) is the pre-activation, from which the fused operators take the activation's slope.
    """

    def __init__(self, network: Network, block: int, layer: Layer, inputs: Tensor) -> None:
        self.network = network
        self.convolution = fix(inputs, layer[0], network.padding(block))
        self.before = self.convolution.value(layer[1])
        self.output = pool(network, self.before)

    def push(self, layer: Layer, tangent: Tensor | None) -> Tensor:
        """The derivative of the output in the direction (layer, tangent of the input; None: zero)."""
        return _pool_tangent(self.network, self.before, self.convolution.push(tangent, *layer))

    def pull(self, cotangent: Tensor, into_inputs: bool) -> tuple[Tensor | None, Tensor, Tensor]:
        """The transposed derivative: cotangents of the inputs (None unless asked for), the kernel and the bias."""
        return self.convolution.pull(_pool_transpose(self.network, self.before, cotangent), into_inputs)


class Linearised:
    """The network at fixed weights on fixed images: features, logits and the derivative of the logits in the weights.

    Args: base (P,); images (N, C, H, W) of its dtype and device; rows: images per call. The primal pass is kept, about
    one MiB per image for depth 3 at 32 pixels. Has no autograd history.
    """

    @torch.no_grad()
    def __init__(self, network: Network, base: Tensor, images: Tensor, rows: int) -> None:
        self.network, self.rows = network, rows
        self.layers = network.layers(base)
        self.chunks: list[list[_Block]] = []
        features = []
        for part in images.split(rows):
            hidden = part.contiguous(memory_format=layout(part))
            blocks = []
            for block, layer in enumerate(self.layers[:-1]):
                blocks.append(_Block(network, block, layer, hidden))
                hidden = blocks[-1].output
            self.chunks.append(blocks)
            features.append(hidden.flatten(1))
        self.features = torch.cat(features)

    @property
    def logits(self) -> Tensor:
        """(N, K)."""
        kernel, bias = self.layers[-1]
        return F.linear(self.features, kernel, bias)

    @torch.no_grad()
    def jvp(self, tangent: Tensor) -> Tensor:
        """(N, K) derivative of the logits in the direction `tangent` (P,), without the logits themselves."""
        *blocks, (kernel, bias) = self.network.layers(tangent)
        pushed = []
        for chunk in self.chunks:
            moved = None
            for block, layer in zip(chunk, blocks, strict=True):
                moved = block.push(layer, moved)
            pushed.append(moved.flatten(1))
        return F.linear(torch.cat(pushed), self.layers[-1][0], bias) + self.features @ kernel.T

    @torch.no_grad()
    def vjp(self, cotangent: Tensor) -> Tensor:
        """(P,) transpose of `jvp`: the gradient of <cotangent, logits> in the weights, cotangent (N, K)."""
        flat = cotangent.new_zeros(self.network.parameters)
        *blocks, (kernel, bias) = self.network.layers(flat)
        kernel.copy_(cotangent.T @ self.features)
        bias.copy_(cotangent.sum(0))
        for chunk, part in zip(self.chunks, (cotangent @ self.layers[-1][0]).split(self.rows), strict=True):
            pulled = part.view(chunk[-1].output.shape)
            for number in reversed(range(len(chunk))):
                pulled, *both = chunk[number].pull(pulled, into_inputs=number > 0)
                for mine, found in zip(blocks[number], both, strict=True):
                    mine += found
        return flat


def dual(network: Network, base: Tensor, tangents: Sequence[Tensor], images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Features (N, d) and, for each tangent (P,), the derivative (N, K) of the logits in its direction.

    Differentiable in everything; what is wanted is the images.
    """
    layers, directions = network.layers(base), [network.layers(tangent) for tangent in tangents]
    hidden, moved = images.contiguous(memory_format=layout(images)), [None] * len(directions)
    for block, (kernel, bias) in enumerate(layers[:-1]):
        moves = [(change, direction[block][0]) for change, direction in zip(moved, directions, strict=True)]
        before, changes = convolve(hidden, kernel, moves, (network.padding(block),) * 2)
        before = before + bias[:, None, None]
        for number, direction in enumerate(directions):
            change = changes[number] + direction[block][1][:, None, None]
            moved[number] = _pool_tangent(network, before, change)
        hidden = pool(network, before)
    features, (kernel, _) = hidden.flatten(1), layers[-1]
    pushed = [
        F.linear(features, *direction[-1]) + F.linear(change.flatten(1), kernel)
        for direction, change in zip(directions, moved, strict=True)
    ]
    return features, pushed
