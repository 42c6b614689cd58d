"""The tail of a ConvNet block, fused: instance norm, ReLU and 2x2 average pool with every derivative to second order.

Two kernels close the calculus. With F the value and T = (F, dF) the value with its tangent:
reverse mode of F is `norm_relu_pool_backward`; forward mode of F is T; the derivative of F's reverse mode, and the
reverse mode of T, are `norm_relu_pool_tangent_backward`, since <v, J' g> has the gradient of <g, J v>. Third
derivatives fall back to the twin.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddlnl import _core
from ddlnl.errors import InputError
from ddlnl.ops import reference
from ddlnl.ops._function import Function


def norm_relu_pool(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, norm: bool = True
) -> Tensor:
    """Instance norm, scale and shift, ReLU, 2x2 average pool of stride 2, in one pass over memory.

    Args:
        x: (N, C, H, W) float32, float64 or bfloat16 (statistics and sums are then float32), contiguous or channels-last
            (other strides are copied); on a CPU the output has the same memory layout. The last row or column of an odd
            side belongs to the norm and not to the pool.
        weight, bias: (C,), or (G, C) with N a multiple of G: row g serves the g-th run of N / G images, as in a stack
            of G networks. Their dtype is that of x, or float32 beside bfloat16. None: 1 and 0.
        eps: added to the biased variance of each (H, W) plane.
        norm: False leaves out the normalisation (weight and bias still apply).

    Returns: (N, C, H // 2, W // 2) of x's dtype. Raises `InputError` where shapes, dtypes or devices do not fit.
    """
    _check(x, weight=weight, bias=bias)
    if not (_core.active(x) and _fits(x)):
        return reference.norm_relu_pool(x, weight, bias, eps, norm)
    return _Value.apply(x, *_rows(x, weight, bias), eps, norm)[0]


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
    """The value of `norm_relu_pool` and its derivative in the direction (dx, dweight, dbias), together.

    Arguments as there; a direction has the shape of what it belongs to, and None is zero. Both results, (N, C, H // 2,
    W // 2) each, can be differentiated once more in all six tensors by the fused kernel (and further by the twin).
    Raises `InputError` where shapes, dtypes or devices do not fit.
    """
    _check(x, dx=dx, weight=weight, dweight=dweight, bias=bias, dbias=dbias)
    if not (_core.active(x) and _fits(x)):
        return reference.norm_relu_pool_tangent(x, dx, weight, dweight, bias, dbias, eps, norm)
    return _Tangent.apply(x, dx, *_rows(x, weight, dweight, bias, dbias), eps, norm)[:2]


def _check(x: Tensor, **others: Tensor | None) -> None:
    if x.dim() != 4:
        raise InputError(f"norm_relu_pool takes x of shape (N, C, H, W), not {tuple(x.shape)}.")
    if not x.is_floating_point():
        raise InputError(f"norm_relu_pool takes floating tensors, not {x.dtype}.")
    groups = max([1, *(len(one) for one in others.values() if one is not None and one.dim() == 2)])
    for name, other in others.items():
        if other is None:
            continue
        allowed = {x.dtype} if name == "dx" else {x.dtype, _computed(x)}
        if other.dtype not in allowed or other.device != x.device:
            raise InputError(
                "norm_relu_pool takes tensors of one dtype on one device (weights and biases float32 beside fewer "
                f"bits), but x is {x.dtype} on {x.device} and {name} is {other.dtype} on {other.device}."
            )
        if name == "dx" and other.shape != x.shape:
            raise InputError(f"The direction dx has shape {tuple(other.shape)} where x has {tuple(x.shape)}.")
        if name != "dx" and not _are_rows(other, x, groups):
            raise InputError(
                f"{name} has shape {tuple(other.shape)}; for x of shape {tuple(x.shape)} it must be (C,), or (G, C) "
                "with a number of images that is a multiple of G, the same G for all."
            )


def _fits(x: Tensor) -> bool:
    """Whether the tangent's gradient finds room for a plane, its direction and the pooled gradients of both in the
    shared memory of a CUDA block; a CPU takes any size."""
    return _core.fits(x, 2.5 * x.shape[2] * x.shape[3])


def _are_rows(rows: Tensor, x: Tensor, groups: int) -> bool:
    if rows.dim() not in (1, 2) or rows.shape[-1] != x.shape[1]:
        return False
    return rows.dim() == 1 or (len(rows) in (1, groups) and len(x) % groups == 0)


def _computed(x: Tensor) -> torch.dtype:
    """The type that the kernels compute in."""
    return torch.promote_types(x.dtype, torch.float32)


def _rows(x: Tensor, *each: Tensor | None) -> list[Tensor | None]:
    """All as (G, C) with one G, in the type that is computed in; a single row serves every group."""
    wide = [None if one is None else one.to(_computed(x)) for one in each]
    tables = [one[None] if one is not None and one.dim() == 1 else one for one in wide]
    groups = max([1, *(len(one) for one in tables if one is not None)])
    return [one if one is None or len(one) == groups else one.expand(groups, -1) for one in tables]


def _layout(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _dense(x: Tensor) -> Tensor:
    """x itself where the kernels can read it, else a contiguous copy (those for CUDA read no channels-last tensors)."""
    if x.is_cuda:
        return x.contiguous()
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _packed(*rows: Tensor | None) -> list[Tensor | None]:
    return [None if one is None else one.contiguous() for one in rows]


def _like(other: Tensor, x: Tensor) -> Tensor:
    return other.contiguous(memory_format=_layout(x))


def _zeros_without(one: Tensor | None, other: Tensor) -> Tensor:
    return torch.zeros_like(other) if one is None else one


def _vmapped(function: type[Function], info: Any, in_dims: tuple, *arguments: Any) -> tuple:
    """The vmap rule of every function here: V batches of N images and G rows are one of V N images and V G rows."""
    folded = [
        _at_front(argument, dim, info.batch_size).flatten(0, 1) if isinstance(argument, Tensor) else argument
        for argument, dim in zip(arguments, in_dims, strict=True)
    ]
    outputs = function.apply(*folded)
    count = info.batch_size
    unfolded = tuple(None if out is None else out.unflatten(0, (count, len(out) // count)) for out in outputs)
    return unfolded, tuple(None if out is None else 0 for out in outputs)


def _at_front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


class _Value(Function):
    """(x, weight (G, C), bias (G, C), eps, norm) to (value, statistics); statistics have no derivative."""

    @staticmethod
    def forward(x, weight, bias, eps, norm):
        return torch.ops.ddlnl.norm_relu_pool(_dense(x), *_packed(weight, bias), eps, norm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, ctx.eps, ctx.norm = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])
        ctx.save_for_forward(*tensors, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None):
        if gradient is None:
            return None, None, None, None, None
        return *_Backward.apply(gradient, *ctx.saved_tensors, ctx.eps, ctx.norm), None, None

    @staticmethod
    def jvp(ctx: Any, dx, dweight, dbias, *_):
        x, weight, bias, _ = ctx.saved_tensors
        return _Tangent.apply(x, _zeros_without(dx, x), weight, dweight, bias, dbias, ctx.eps, ctx.norm)[1], None

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _vmapped(_Value, info, in_dims, *arguments)


class _Backward(Function):
    """(gradient, x, weight, bias, statistics, eps, norm) to the gradients of x, weight and bias, None for None."""

    @staticmethod
    def forward(gradient, x, weight, bias, statistics, eps, norm):
        x = _dense(x)
        tensors = _like(gradient, x), x, *_packed(weight, bias, statistics)
        gx, *rows = torch.ops.ddlnl.norm_relu_pool_backward(*tensors, norm)
        return gx, *_present(rows, (weight, bias))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        gradient, *tensors, _, ctx.eps, ctx.norm = inputs
        ctx.save_for_backward(gradient, *tensors)
        ctx.save_for_forward(gradient, *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, vx, vweight, vbias):
        """With v the incoming gradient: <v, J' g> = <g, J v>, so g receives J v and the rest its gradient."""
        tangent, gradients = _tangent_and_gradients(ctx, None, vx, vweight, vbias)
        return tangent, *gradients, None, None, None

    @staticmethod
    def jvp(ctx: Any, dgradient, dx, dweight, dbias, *_):
        """d(J' g) = J' dg + the gradient of <g, J d> with respect to the arguments of J."""
        return _tangent_and_gradients(ctx, dgradient, dx, dweight, dbias)[1]

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _vmapped(_Backward, info, in_dims, *arguments)


def _tangent_and_gradients(ctx: Any, value_gradient, dx, dweight, dbias) -> tuple[Tensor, tuple]:
    """J d for the direction d, and the gradient of <value_gradient, F> + <g, J d> in x, weight and bias."""
    gradient, x, weight, bias = ctx.saved_tensors
    directed = (x, _zeros_without(dx, x), weight, dweight, bias, dbias)
    _, tangent, statistics = _Tangent.apply(*directed, ctx.eps, ctx.norm)
    value_gradient = _zeros_without(value_gradient, gradient)
    all_six = _TangentBackward.apply(value_gradient, gradient, *directed, statistics, ctx.eps, ctx.norm)
    return tangent, all_six[::2]


class _Tangent(Function):
    """(x, dx, weight, dweight, bias, dbias, eps, norm) to (value, tangent, statistics)."""

    @staticmethod
    def forward(x, dx, weight, dweight, bias, dbias, eps, norm):
        x = _dense(x)
        rows = _packed(weight, dweight, bias, dbias)
        return torch.ops.ddlnl.norm_relu_pool_tangent(x, _like(dx, x), *rows, eps, norm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, ctx.eps, ctx.norm = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*tensors, output[2])
        ctx.save_for_forward(*tensors, output[2])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient, dgradient, _: None):
        if gradient is None and dgradient is None:
            return (None,) * 8
        gradient, dgradient = _zeros_without(gradient, dgradient), _zeros_without(dgradient, gradient)
        return *_TangentBackward.apply(gradient, dgradient, *ctx.saved_tensors, ctx.eps, ctx.norm), None, None

    @staticmethod
    def jvp(ctx: Any, *directions):
        function = _with_rest(reference.norm_relu_pool_tangent, ctx.saved_tensors[:6], ctx.eps, ctx.norm)
        return *_push_forward(function, ctx.saved_tensors[:6], directions[:6]), None

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _vmapped(_Tangent, info, in_dims, *arguments)


class _TangentBackward(Function):
    """(gradient, dgradient, the six tensors, statistics, eps, norm) to the gradients of the six, None for None."""

    @staticmethod
    def forward(gradient, dgradient, x, dx, weight, dweight, bias, dbias, statistics, eps, norm):
        x = _dense(x)
        images = (_like(gradient, x), _like(dgradient, x), x, _like(dx, x))
        rows = _packed(weight, dweight, bias, dbias, statistics)
        gx, gdx, *rows = torch.ops.ddlnl.norm_relu_pool_tangent_backward(*images, *rows, norm)
        return gx, gdx, *_present(rows, (weight, dweight, bias, dbias))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, _, ctx.eps, ctx.norm = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *vectors):
        tensors, function = ctx.saved_tensors, _TangentBackward._twin(ctx)
        present = [one for one in tensors if one is not None]
        vectors = [vector for vector, of in zip(vectors, tensors[2:], strict=True) if of is not None]
        pulled = iter(torch.func.vjp(function, *present)[1](tuple(vectors)))
        return *(None if one is None else next(pulled) for one in tensors), None, None, None

    @staticmethod
    def jvp(ctx: Any, *directions):
        tensors = ctx.saved_tensors
        pushed = iter(_push_forward(_TangentBackward._twin(ctx), tensors, directions[:8]))
        return tuple(None if one is None else next(pushed) for one in tensors[2:])

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _vmapped(_TangentBackward, info, in_dims, *arguments)

    @staticmethod
    def _twin(ctx: Any):
        """The gradients of the present ones of the six tensors, from the twin, as a function of what is present."""

        def gradients(gradient: Tensor, dgradient: Tensor, *present: Tensor) -> tuple[Tensor, ...]:
            function = _with_rest(reference.norm_relu_pool_tangent, ctx.saved_tensors[2:], ctx.eps, ctx.norm)
            return torch.func.vjp(function, *present)[1]((gradient, dgradient))

        return gradients


def _present(gradients: list[Tensor], of: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [None if tensor is None else gradient for gradient, tensor in zip(gradients, of, strict=True)]


def _with_rest(function, tensors: tuple[Tensor | None, ...], *rest):
    """`function(*tensors, *rest)` as a function of those tensors that are not None."""

    def of_present(*present: Tensor):
        given = iter(present)
        return function(*(None if one is None else next(given) for one in tensors), *rest)

    return of_present


def _push_forward(function, tensors, directions) -> tuple[Tensor, ...]:
    """The derivative of `function(*present tensors)` in a direction, as the transpose of its transpose."""
    present = [one for one in tensors if one is not None]
    along = [_zeros_without(d, one) for one, d in zip(tensors, directions, strict=True) if one is not None]
    outputs, pull_back = torch.func.vjp(function, *present)
    zeros = tuple(torch.zeros_like(out) for out in outputs)
    return torch.func.vjp(lambda *vectors: pull_back(vectors), *zeros)[1](tuple(along))


def _register_fakes() -> None:
    def pooled(x: Tensor) -> Tensor:
        out = x.new_empty((*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2))
        return out.contiguous(memory_format=_layout(x))

    def statistics(x: Tensor, kinds: int) -> Tensor:
        return x.new_empty((len(x), kinds, x.shape[1]), dtype=_computed(x))

    def rows(x: Tensor, *of: Tensor | None) -> list[Tensor]:
        groups = max([1, *(len(one) for one in of if one is not None)])
        shapes = [0 if one is None else (groups, x.shape[1]) for one in of]
        return [x.new_empty(shape, dtype=_computed(x)) for shape in shapes]

    register = torch.library.register_fake
    register("ddlnl::norm_relu_pool")(lambda x, weight, bias, eps, norm: (pooled(x), statistics(x, 2)))
    register("ddlnl::norm_relu_pool_tangent")(
        lambda x, dx, weight, dweight, bias, dbias, eps, norm: (pooled(x), pooled(x), statistics(x, 4))
    )
    register("ddlnl::norm_relu_pool_backward")(
        lambda gradient, x, weight, bias, statistics, norm: (torch.empty_like(x), *rows(x, weight, bias))
    )
    register("ddlnl::norm_relu_pool_tangent_backward")(
        lambda gradient, dgradient, x, dx, weight, dweight, bias, dbias, statistics, norm: (
            torch.empty_like(x),
            torch.empty_like(x),
            *rows(x, weight, dweight, bias, dbias),
        )
    )


if _core.load():
    _register_fakes()
