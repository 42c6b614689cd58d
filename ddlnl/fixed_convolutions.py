"""A 3x3 convolution at images and a weight that stand still: its value, its derivative and the transpose of that.

Solvers ask for the latter two dozens of times. What Winograd's products lift of images and weight serves all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ddlnl import winograd
from ddlnl.convolutions import FEW, is_winograd, layout


def fix(x: Tensor, weight: Tensor, padding: int) -> Direct | Products | Patches:
    """The convolution at (N, C, H, W) x and (K, C, 3, 3) W, by whichever way was measured fastest."""
    if is_winograd(x, (padding, padding)):
        return Products(x, weight)
    return (Patches if x.is_cpu and x.shape[1] <= FEW else Direct)(x, weight, padding)


class Direct:
    """By torch's own convolutions."""

    def __init__(self, x: Tensor, weight: Tensor, padding: int) -> None:
        self.x, self.weight, self.padding = x, _dense(weight), padding

    def value(self, bias: Tensor) -> Tensor:
        """W * x + b, (N, K, H, W), for (K,) b."""
        return F.conv2d(self.x, self.weight, bias, padding=self.padding)

    def push(self, dx: Tensor | None, dweight: Tensor, dbias: Tensor) -> Tensor:
        """W * dx + dW * x + db, (N, K, H, W); dx None: x does not move."""
        pushed = F.conv2d(self.x, _dense(dweight), dbias, padding=self.padding)
        return pushed if dx is None else pushed.add_(F.conv2d(dx, self.weight, padding=self.padding))

    def pull(self, cotangent: Tensor, into_x: bool) -> tuple[Tensor | None, Tensor, Tensor]:
        """The transpose of `push`: from an (N, K, H, W) cotangent to those of x (None unless asked for), W and b."""
        return torch.ops.aten.convolution_backward(
            cotangent,
            self.x,
            self.weight,
            [len(self.weight)],
            [1, 1],
            [self.padding] * 2,
            [1, 1],
            False,
            [0, 0],
            1,
            [into_x, True, True],
        )


class Products:
    """The same with padding 1 as Winograd's products; results are channels-last."""

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        self.size = x.shape[2:]
        self.x, self.weight = winograd.lift(x), winograd.lift_weight(weight)

    def value(self, bias: Tensor) -> Tensor:
        """As `Direct.value`."""
        return self._lower(torch.bmm(self.x, self.weight), bias)

    def _lower(self, products: Tensor, bias: Tensor) -> Tensor:
        return winograd.lower(products, self.size).add_(bias[:, None, None])

    def push(self, dx: Tensor | None, dweight: Tensor, dbias: Tensor) -> Tensor:
        """As `Direct.push`."""
        products = torch.bmm(self.x, winograd.lift_weight(dweight))
        if dx is not None:
            products.baddbmm_(winograd.lift(dx), self.weight)
        return self._lower(products, dbias)

    def pull(self, cotangent: Tensor, into_x: bool) -> tuple[Tensor | None, Tensor, Tensor]:
        """As `Direct.pull`."""
        lifted = winograd.lower_back(cotangent)
        dweight = winograd.lift_weight_back(torch.bmm(self.x.mT, lifted))
        dx = winograd.lift_back(torch.bmm(lifted, self.weight.mT), self.size) if into_x else None
        return dx, dweight, _pixels(cotangent).sum(0)


class Patches:
    """The same for few channels on a CPU: the patches that the kernel sees, times matrices.

    oneDNN's gradient of a weight with three channels runs at a fraction of that speed.
    """

    def __init__(self, x: Tensor, weight: Tensor, padding: int) -> None:
        self.weight, self.padding = weight, padding
        padded = F.pad(x, [padding] * 4).permute(0, 2, 3, 1)
        seen = padded.unfold(1, 3, 1).unfold(2, 3, 1)  # (N, H, W, C, 3, 3)
        self.size = seen.shape[:3]
        self.patches = seen.reshape(-1, seen.shape[3] * 9)

    def value(self, bias: Tensor) -> Tensor:
        """As `Direct.value`."""
        return self._times(self.weight, bias)

    def _times(self, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias, self.patches, weight.flatten(1).T).unflatten(0, self.size).permute(0, 3, 1, 2)

    def push(self, dx: Tensor | None, dweight: Tensor, dbias: Tensor) -> Tensor:
        """As `Direct.push`."""
        pushed = self._times(dweight, dbias)
        return pushed if dx is None else pushed.add_(F.conv2d(dx, self.weight, padding=self.padding))

    def pull(self, cotangent: Tensor, into_x: bool) -> tuple[Tensor | None, Tensor, Tensor]:
        """As `Direct.pull`."""
        pixels = _pixels(cotangent)
        dx = F.conv_transpose2d(cotangent, self.weight, padding=self.padding) if into_x else None
        return dx, (pixels.T @ self.patches).view_as(self.weight), pixels.sum(0)


def _pixels(images: Tensor) -> Tensor:
    """(N, K, H, W) as (N H W, K)."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def _dense(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=layout(weight))
