"""The tail of a ConvNet block without a norm and with softplus, fused: activation and 2x2 average pool.

Three kernels: the value, its tangent, and the transpose of the tangent, which is reverse mode of the value. Further
derivatives are those of the twins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddlnl import _core
from ddlnl.errors import InputError
from ddlnl.ops import reference
from ddlnl.ops._function import Function

SHARPEST = 1e6
"""The largest beta: softplus is then within 1e-6 of ReLU, and beta x does not overflow where x is a sensible number."""


def softplus_pool(x: Tensor, beta: float) -> Tensor:
    """softplus(beta x) / beta, then a 2x2 average pool of stride 2, in one pass over memory.

    Args:
        x: (N, C, H, W) float32 or float64; read channels-last on a CPU and contiguous on a GPU, other strides are
            copied. The last row or column of an odd side is left out.
        beta: above 0 and at most `SHARPEST`; the larger, the closer to ReLU.

    Returns: (N, C, H // 2, W // 2) of x's dtype. Raises `InputError` where x is something else, or beta out of range.
    """
    _check(x, beta)
    return _Value.apply(x, beta) if _compiled(x) else reference.softplus_pool(x, beta)


def softplus_pool_tangent(x: Tensor, dx: Tensor, beta: float) -> Tensor:
    """The derivative of `softplus_pool` in the direction dx (N, C, H, W)."""
    _check(x, beta, dx=(dx, x.shape))
    if not _compiled(x):
        return reference.softplus_pool_tangent(x, dx, beta)
    return _Tangent.apply(x, dx, beta)


def softplus_pool_backward(gradient: Tensor, x: Tensor, beta: float) -> Tensor:
    """The transpose of `softplus_pool_tangent` as a map of dx, (N, C, H, W), applied to a gradient of the output."""
    _check(x, beta, gradient=(gradient, (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)))
    if not _compiled(x):
        return reference.softplus_pool_backward(gradient, x, beta)
    return _Backward.apply(gradient, x, beta)


def _check(x: Tensor, beta: float, **others: tuple[Tensor, tuple[int, ...]]) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(f"softplus_pool takes a floating x of shape (N, C, H, W), not {x.dtype} {tuple(x.shape)}.")
    if not 0 < beta <= SHARPEST:
        raise InputError(f"The beta of softplus_pool is {beta!r}, and it must be above 0 and at most {SHARPEST:g}.")
    for name, (other, shape) in others.items():
        if other.shape != shape or other.dtype != x.dtype or other.device != x.device:
            raise InputError(
                f"softplus_pool takes {name} of {x.dtype} {tuple(shape)} on {x.device} here, not {other.dtype} "
                f"{tuple(other.shape)} on {other.device}."
            )


def _compiled(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64) and _core.active(x)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.is_cpu else torch.contiguous_format)


class _Kernel(Function):
    """A kernel of (tensors ..., beta) whose derivatives are those of its `twin`."""

    twin: Callable[..., Tensor]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.beta = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @classmethod
    def pulled(cls, ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pull = torch.func.vjp(lambda *tensors: cls.twin(*tensors, ctx.beta), *ctx.saved_tensors)[1]
        return *pull(gradient), None

    @classmethod
    def pushed(cls, ctx: Any, directions: tuple[Tensor | None, ...]) -> Tensor:
        """As the transpose of the transpose, which needs no forward mode within forward mode."""
        tensors = ctx.saved_tensors
        along = tuple(torch.zeros_like(t) if d is None else d for t, d in zip(tensors, directions, strict=True))
        out, pull = torch.func.vjp(lambda *given: cls.twin(*given, ctx.beta), *tensors)
        return torch.func.vjp(pull, torch.zeros_like(out))[1](along)[0]

    @classmethod
    def folded(cls, info: Any, in_dims: tuple, arguments: tuple) -> tuple[Tensor, int]:
        """V batches of N images are one of V N images."""
        *tensors, beta = arguments
        count = info.batch_size
        folded = [
            (one.expand(count, *one.shape) if dim is None else one.movedim(dim, 0)).flatten(0, 1)
            for one, dim in zip(tensors, in_dims, strict=False)
        ]
        out = cls.apply(*folded, beta)
        return out.unflatten(0, (count, len(out) // count)), 0


class _Value(_Kernel):
    twin = staticmethod(reference.softplus_pool)

    @staticmethod
    def forward(x, beta):
        return torch.ops.ddlnl.softplus_pool(_dense(x), beta)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor):
        (x,) = ctx.saved_tensors
        return _Backward.apply(gradient, x, ctx.beta), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _):
        (x,) = ctx.saved_tensors
        return _Tangent.apply(x, dx, ctx.beta)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _Value.folded(info, in_dims, arguments)


class _Tangent(_Kernel):
    twin = staticmethod(reference.softplus_pool_tangent)

    @staticmethod
    def forward(x, dx, beta):
        return torch.ops.ddlnl.softplus_pool_tangent(_dense(x), _dense(dx), beta)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor):
        return _Tangent.pulled(ctx, gradient)

    @staticmethod
    def jvp(ctx: Any, *directions):
        return _Tangent.pushed(ctx, directions[:2])

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _Tangent.folded(info, in_dims, arguments)


class _Backward(_Kernel):
    twin = staticmethod(reference.softplus_pool_backward)

    @staticmethod
    def forward(gradient, x, beta):
        return torch.ops.ddlnl.softplus_pool_backward(_dense(gradient), _dense(x), beta)

    @staticmethod
    def backward(ctx: Any, vector: Tensor):
        return _Backward.pulled(ctx, vector)

    @staticmethod
    def jvp(ctx: Any, *directions):
        return _Backward.pushed(ctx, directions[:2])

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _Backward.folded(info, in_dims, arguments)


def _register_fakes() -> None:
    def pooled(x: Tensor, *_: Any) -> Tensor:
        return _dense(x.new_empty((*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)))

    register = torch.library.register_fake
    register("ddlnl::softplus_pool")(pooled)
    register("ddlnl::softplus_pool_tangent")(pooled)
    register("ddlnl::softplus_pool_backward")(lambda gradient, x, beta: torch.empty_like(x))


if _core.load():
    _register_fakes()
