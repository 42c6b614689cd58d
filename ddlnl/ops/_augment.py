"""The compiled augmentation: fake kernels, derivatives, and the choice between kernel and twin.

With A the linear part of the augmentation: reverse mode applies its transpose, forward mode applies A, and each of the
two operators is the other's derivative, so derivatives of every order are these two operators again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddlnl import _core
from ddlnl.ops import reference
from ddlnl.ops._function import Function
from ddlnl.ops.reference._augment import check


def augment(images: Tensor, table: Tensor, codes: Tensor, index: Tensor | None = None) -> Tensor:
    """Differentiable siamese augmentation (arXiv 2102.08259): every image runs through a program of operations.

    Arguments, result, formulas and errors are those of `ops.reference.augment`. The compiled call reads no value on
    the host, so a CUDA graph can hold it and be replayed with other parameters, codes and indices. On a CPU an unknown
    code or an index outside the images raises RuntimeError; on CUDA an unknown code does nothing, and an index outside
    gives an image of NaN.
    """
    check(images, table, codes, index)
    if not (_core.active(images) and _fits(images)):
        return reference.augment(images, table, codes, index)
    compute = torch.promote_types(images.dtype, torch.float32)
    constants = (table.detach().to(compute).contiguous(), codes.contiguous(), _contiguous(index))
    return Augment.apply(images.contiguous(), *constants, False)


def _contiguous(index: Tensor | None) -> Tensor | None:
    return None if index is None else index.contiguous()


def _fits(images: Tensor) -> bool:
    """Whether three copies of an image fit in the shared memory of one CUDA block, as the adjoint with an index needs.

    3 x 64 x 64 float32 do with the 163 KB of an A100 or the 227 KB of an H100, not with the 99 KB of an A10, A40, L4
    or L40. A CPU takes any image.
    """
    return _core.fits(images, 3 * images.shape[1:].numel())


class Augment(Function):
    """(images, table, codes, index, linear) -> augmented images; `linear` leaves out the brightness offset."""

    @staticmethod
    def forward(images, table, codes, index, linear):
        return torch.ops.ddlnl.augment(images.contiguous(), table, codes, index, linear)

    @staticmethod
    def setup_context(ctx, inputs, output):
        images, table, codes, index, _ = inputs
        ctx.save_for_backward(table, codes, index)
        ctx.save_for_forward(table, codes, index)
        ctx.count = images.shape[0]

    @staticmethod
    def backward(ctx, gradient):
        return AugmentAdjoint.apply(gradient, *ctx.saved_tensors, ctx.count), None, None, None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return Augment.apply(tangent, *ctx.saved_tensors, True)

    @staticmethod
    def vmap(info, in_dims, images, table, codes, index, linear):
        size, dims = info.batch_size, in_dims
        batched = dims[0] is not None
        images = images.movedim(dims[0], 0) if batched else images
        if index is None and not batched:  # every batch reads the same images
            index, dims = torch.arange(images.shape[0], device=images.device), (*dims[:3], None, None)
        count = images.shape[int(batched)]
        rows = _rows(table, dims[1], size), _rows(codes, dims[2], size)
        index = _indices(index, dims[3], size, count, count if batched else 0)
        result = Augment.apply(images.flatten(0, 1) if batched else images, *rows, index, linear)
        return result.unflatten(0, (size, result.shape[0] // size)), 0


class AugmentAdjoint(Function):
    """(gradient, table, codes, index, count) -> the transpose of the linear part, (count, C, H, W)."""

    @staticmethod
    def forward(gradient, table, codes, index, count):
        return torch.ops.ddlnl.augment_adjoint(gradient.contiguous(), table, codes, index, count)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, table, codes, index, ctx.count = inputs
        ctx.save_for_backward(table, codes, index)
        ctx.save_for_forward(table, codes, index)

    @staticmethod
    def backward(ctx, gradient):
        return Augment.apply(gradient, *ctx.saved_tensors, True), None, None, None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return AugmentAdjoint.apply(tangent, *ctx.saved_tensors, ctx.count)

    @staticmethod
    def vmap(info, in_dims, gradient, table, codes, index, count):
        size, dims = info.batch_size, in_dims
        gradient = gradient.movedim(dims[0], 0) if dims[0] is not None else gradient.expand(size, *gradient.shape)
        rows = _rows(table, dims[1], size), _rows(codes, dims[2], size)
        index = _indices(index, dims[3], size, count, count)
        result = AugmentAdjoint.apply(gradient.flatten(0, 1), *rows, index, size * count)
        return result.unflatten(0, (size, count)), 0


def _rows(rows: Tensor, dim: int | None, size: int) -> Tensor:
    """The rows of `size` batches one after another; one row for all images stays one."""
    if dim is None:
        return rows if rows.dim() == 1 or rows.shape[0] == 1 else rows.repeat(size, 1)
    rows = rows.movedim(dim, 0)
    return (rows.flatten(0, 1) if rows.dim() > 2 else rows).contiguous()


def _indices(index: Tensor | None, dim: int | None, size: int, count: int, step: int) -> Tensor | None:
    """The indices of `size` batches one after another, those of batch b shifted by b step; None stays None.

    One outside its own batch of `count` images would be inside another's, so it becomes -1, which is outside all.
    """
    if index is None:
        return None
    index = index.expand(size, -1) if dim is None else index.movedim(dim, 0)
    first = step * torch.arange(size, device=index.device)[:, None]
    return torch.where((index < 0) | (index >= count), -1, index + first).flatten()


def _fake_augment(images, table, codes, index, linear):
    count = images.shape[0] if index is None else index.shape[0]
    return images.new_empty((count, *images.shape[1:]))


def _fake_augment_adjoint(gradient, table, codes, index, count):
    return gradient.new_empty((count, *gradient.shape[1:]))


if _core.load():
    torch.library.register_fake("ddlnl::augment", _fake_augment)
    torch.library.register_fake("ddlnl::augment_adjoint", _fake_augment_adjoint)
