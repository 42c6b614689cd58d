"""The matching losses, compiled: one pass over the parameters or the features each, and derivatives of any order.

Raw operators (`torch.ops.ddlnl`), all deterministic whatever the number of threads:

* `trajectory_distance_sums(student, target, start) -> (2,) or (M, 2) float64`: |student - target|^2 and
  |start - target|^2 of (P,) or (M, P) float32, float64 or bfloat16 vectors, added up in float64.
* `class_means(features (N, D), labels (N,) int64, num_classes) -> (means (K, D), counts (K,))`: both in the type that
  is computed in (float32 for bfloat16); a class without rows has mean 0.
* `class_means_adjoint(gradient (K, D), labels, counts) -> (N, D)`: row n is gradient[label_n] / counts[label_n].

A label outside [0, K) is an error on the CPU. On CUDA, where seeing it would cost a wait for the device, its row counts
nowhere and has gradient 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddlnl import _core
from ddlnl.errors import InputError
from ddlnl.ops import reference
from ddlnl.ops._function import Function


def trajectory_distance(student: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Normalised squared distance of parameters |student - target|^2 / |start - target|^2 (arXiv 2203.11932, eq. 2).

    Args: (P,) flat vectors, or (M, P) for M students at once; one shape, floating dtype and device. Returns a scalar,
    or (M,), in that dtype. It is NaN or infinite where start equals target. Differentiable in all three. Raises
    InputError where shapes, dtypes or devices differ.
    """
    for name, other in (("target", target), ("start", start)):
        if _kind(other) != _kind(student):
            raise InputError(f"{name} is {_described(other)} where student is {_described(student)}; both must agree.")
    if student.dim() not in (1, 2) or not student.is_floating_point():
        raise InputError(f"student is {_described(student)}; it can be floating of shape (P,) or (M, P).")
    if not _core.active(student):
        return reference.trajectory_distance(student, target, start)
    near, far = TrajectorySums.apply(student, target, start).unbind(-1)
    return (near / far).to(student.dtype)


def class_mean_distance(
    real: Tensor, real_labels: Tensor, synthetic: Tensor, synthetic_labels: Tensor, num_classes: int
) -> Tensor:
    """Sum over classes of the squared distance of mean features (arXiv 2110.04181, equation 5).

    Args: real (R, D) and synthetic (S, D) features of one floating dtype with int64 labels (R,), (S,) in mixed order,
    all on one device. A class that is missing on either side counts as 0. Returns a scalar of that dtype,
    differentiable in both features. Raises InputError for other shapes or dtypes and, on the CPU, for a label outside
    [0, num_classes).
    """
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}; there must be one or more.")
    for name, features, labels in (("real", real, real_labels), ("synthetic", synthetic, synthetic_labels)):
        if features.dim() != 2 or not features.is_floating_point():
            raise InputError(f"{name} is {_described(features)}; it can be floating features (N, D).")
        if labels.dtype != torch.int64 or labels.shape != features.shape[:1] or labels.device != features.device:
            raise InputError(
                f"{name}_labels is {_described(labels)} where {name} is {_described(features)}; "
                "there must be one int64 label per row."
            )
        _check_range(f"{name}_labels", labels, num_classes)
    if _kind(real)[1:] != _kind(synthetic)[1:] or real.shape[1] != synthetic.shape[1]:
        raise InputError(
            f"real is {_described(real)} and synthetic {_described(synthetic)}; only the number of rows can differ."
        )
    if not _core.active(real):
        return reference.class_mean_distance(real, real_labels, synthetic, synthetic_labels, num_classes)
    real_means, real_counts = ClassMeans.apply(real, real_labels, num_classes)
    means, counts = ClassMeans.apply(synthetic, synthetic_labels, num_classes)
    distances = (means - real_means).square().sum(1)
    return torch.where((real_counts > 0) & (counts > 0), distances, 0).sum().to(real.dtype)


def _kind(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.dtype, tensor.device


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"


def _check_range(name: str, labels: Tensor, num_classes: int) -> None:
    """Labels whose values Python can see: not on a GPU, where it would wait, nor inside a transform of torch.func."""
    if labels.device.type != "cpu" or not labels.numel() or torch._C._functorch.is_functorch_wrapped_tensor(labels):
        return
    low, high = labels.aminmax()
    if low < 0 or high >= num_classes:
        wrong = int(low if low < 0 else high)
        raise InputError(f"{name} has label {wrong}; the {num_classes} classes are 0 to {num_classes - 1}.")


class TrajectorySums(Function):
    """(student, target, start), (P,) or (M, P) each -> (2,) or (M, 2) float64; quadratic, so its derivatives are
    formulas of the inputs alone."""

    @staticmethod
    def forward(student: Tensor, target: Tensor, start: Tensor) -> Tensor:
        return torch.ops.ddlnl.trajectory_distance_sums(student, target, start)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        if gradient is None:
            return None, None, None
        student, target, start = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        near, far = (2 * gradient).to(student.dtype).unsqueeze(-2).unbind(-1)
        by_student = near * (student - target) if wanted[0] or wanted[1] else None
        by_start = far * (start - target) if wanted[2] or wanted[1] else None
        by_target = -by_student - by_start if wanted[1] else None
        return by_student if wanted[0] else None, by_target, by_start if wanted[2] else None

    @staticmethod
    def jvp(ctx, student_tangent, target_tangent, start_tangent):
        student, target, start = ctx.saved_tensors
        pairs = ((student - target, student_tangent), (start - target, start_tangent))
        return torch.stack([_slope(offset, tangent, target_tangent) for offset, tangent in pairs], -1)

    @staticmethod
    def vmap(info, in_dims, student, target, start):
        size = info.batch_size
        stacks = [_batch_first(t, dim, size) for t, dim in zip((student, target, start), in_dims, strict=True)]
        rows = [stack.reshape(-1, stack.shape[-1]) for stack in stacks]
        return TrajectorySums.apply(*rows).reshape(*stacks[0].shape[:-1], 2), 0


def _slope(offset: Tensor, forward: Tensor | None, back: Tensor | None) -> Tensor:
    """The derivative of |offset|^2 where it moves by `forward` less `back`; None is zero."""
    moved = torch.zeros_like(offset) if forward is None else forward
    moved = moved if back is None else moved - back
    return 2 * (offset * moved).sum(-1, dtype=torch.float64)


def _batch_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


class ClassMeans(Function):
    """(features (N, D), labels (N,), K) -> (means (K, D), counts (K,)); linear in the features."""

    @staticmethod
    def forward(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        return torch.ops.ddlnl.class_means(features, labels, num_classes)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        features, labels, ctx.num_classes = inputs
        ctx.dtype = features.dtype
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(labels, output[1])
        ctx.save_for_forward(labels)

    @staticmethod
    def backward(ctx, gradient, _):
        if gradient is None:
            return None, None, None
        return ClassMeansAdjoint.apply(gradient, *ctx.saved_tensors).to(ctx.dtype), None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return ClassMeans.apply(tangent, ctx.saved_tensors[0], ctx.num_classes)[0], None

    @staticmethod
    def vmap(info, in_dims, features, labels, num_classes):
        """A batch with common labels is a row of wider features; with labels of its own it has classes of its own."""
        size = info.batch_size
        features = _batch_first(features, in_dims[0], size)
        if in_dims[1] is None:
            means, counts = ClassMeans.apply(features.transpose(0, 1).flatten(1), labels, num_classes)
            return (means.unflatten(1, features.shape[::2]), counts), (1, None)
        labels = _shifted(labels.movedim(in_dims[1], 0), num_classes)
        means, counts = ClassMeans.apply(features.flatten(0, 1), labels, size * num_classes)
        return (means.unflatten(0, (size, num_classes)), counts.unflatten(0, (size, num_classes))), (0, 0)


class ClassMeansAdjoint(Function):
    """(gradient (K, D), labels (N,), counts (K,)) -> (N, D): the transpose of `ClassMeans`, and it is its own."""

    @staticmethod
    def forward(gradient: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        return torch.ops.ddlnl.class_means_adjoint(gradient, labels, counts)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.dtype = inputs[0].dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx, gradient):
        if gradient is None:
            return None, None, None
        labels, counts = ctx.saved_tensors
        return ClassMeans.apply(gradient, labels, len(counts))[0].to(ctx.dtype), None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return ClassMeansAdjoint.apply(tangent, *ctx.saved_tensors)

    @staticmethod
    def vmap(info, in_dims, gradient, labels, counts):
        size = info.batch_size
        gradient = _batch_first(gradient, in_dims[0], size)
        if in_dims[1] is None and in_dims[2] is None:
            spread = ClassMeansAdjoint.apply(gradient.transpose(0, 1).flatten(1), labels, counts)
            return spread.unflatten(1, gradient.shape[::2]), 1
        labels, counts = (_batch_first(t, dim, size) for t, dim in zip((labels, counts), in_dims[1:], strict=True))
        rows = _shifted(labels, counts.shape[1])
        return ClassMeansAdjoint.apply(gradient.flatten(0, 1), rows, counts.flatten()).unflatten(0, labels.shape), 0


def _shifted(labels: Tensor, num_classes: int) -> Tensor:
    """(B, N) labels of B batches as (B N,) labels among B K classes; one outside its own K stays outside."""
    first = torch.arange(len(labels), device=labels.device)[:, None] * num_classes
    return torch.where((labels < 0) | (labels >= num_classes), -1, labels + first).flatten()


def _register_fakes() -> None:
    """Shapes and dtypes of the raw operators, for tracing."""

    @torch.library.register_fake("ddlnl::trajectory_distance_sums")
    def _(student, target, start):
        return student.new_empty((*student.shape[:-1], 2), dtype=torch.float64)

    @torch.library.register_fake("ddlnl::class_means")
    def _(features, labels, num_classes):
        computed = torch.promote_types(features.dtype, torch.float32)
        means = features.new_empty((num_classes, features.shape[1]), dtype=computed)
        return means, features.new_empty((num_classes,), dtype=computed)

    @torch.library.register_fake("ddlnl::class_means_adjoint")
    def _(gradient, labels, counts):
        return gradient.new_empty((labels.shape[0], gradient.shape[1]))


if _core.load():
    _register_fakes()
