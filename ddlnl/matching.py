"""The gradient of trajectory matching in the memory of one student step (arXiv 2203.11932, 2211.10586).

A student takes T plain SGD steps theta <- theta - a g on augmented minibatches of the synthetic set, where g is the
gradient of the soft cross-entropy l; its distance to an expert's later parameters is the loss. With v = dloss / dtheta
after the last step, backwards over the steps and s = -a <v, g>:

    d images += ds / dimages,   d logits += ds / dlogits,   d a -= <v, g>,   v += ds / dtheta   (exact only)

The "exact" mode is the gradient through the unrolled student. "tesla" keeps v, which drops how a step depends on the
parameters before it. <v, g> is the derivative of l along v, so a step takes one dual forward and one reverse pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddlnl import ops, tangents
from ddlnl.augment import Augmentation
from ddlnl.errors import InputError, nearest
from ddlnl.networks import ConvNet
from ddlnl.precision import convolutions

MODES = ("exact", "tesla")
PRECISIONS = {"float32": None, "tf32": None, "bf16": torch.bfloat16}


def matching_gradient(
    network: ConvNet,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    logits: Tensor,
    step_size: Tensor | float,
    minibatches: Tensor,
    augmentations: Sequence[Augmentation] | None = None,
    mode: str = "exact",
    precision: str = "float32",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss |theta_T - target|^2 / |start - target|^2 and its gradients.

    Args:
        network: which ConvNet (`tangents.check`); its own parameters are not read.
        start, target: (P,) parameters, those of the student before its first step and those it should reach.
        images: (N, C, H, W). logits: (N, K), whose softmax are the labels. step_size: a number.
        minibatches: (T, B) int64, the rows of images and logits in each step. augmentations: one draw per step, B rows
            each, or None. Both passes use the same draw.
        mode: "exact" or "tesla". precision: "float32" computes in the dtype of `start`; "tf32" too, but for the
            convolutions on a GPU, which round their factors; "bf16" has bfloat16 weights and activations in
            convolutions and blocks, the rest in float32.

    Returns: (loss, d_images, d_logits, d_step_size), detached, in the dtype of `start`. Besides T + 1 parameter vectors
    the memory in use does not depend on T. A student that diverges gives a loss of NaN or infinity. Raises `InputError`
    where arguments do not fit together.
    """
    step_size = torch.as_tensor(step_size, dtype=start.dtype, device=start.device).detach()
    _check(network, start, target, images, logits, step_size, minibatches, augmentations, mode, precision)
    student = _Student(
        network,
        images.detach(),
        logits.detach().softmax(1),
        step_size,
        minibatches,
        augmentations,
        PRECISIONS[precision],
    )
    with convolutions(precision):
        return _there_and_back(student, start.detach(), target.detach(), mode == "exact")


def _there_and_back(
    student: _Student, start: Tensor, target: Tensor, exact: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All steps, the loss, and all steps back."""
    path = student.walk(start)
    loss, direction = _distance(path.pop(), target, path[0])
    d_images, d_step_size = torch.zeros_like(student.images), torch.zeros_like(student.step_size)
    d_logits = torch.zeros_like(student.labels)
    for step, index in reversed(list(enumerate(student.minibatches))):
        by_images, by_logits, slope, by_parameters = student.adjoint(step, path.pop(), direction, exact)
        d_images.index_add_(0, index, by_images)
        d_logits.index_add_(0, index, by_logits)
        d_step_size -= slope
        if by_parameters is not None:
            direction = direction + by_parameters
    return loss, d_images, d_logits, d_step_size


def _distance(end: Tensor, target: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and its gradient in `end`."""
    end = end.requires_grad_()
    loss = ops.trajectory_distance(end, target, start)
    return loss.detach(), torch.autograd.grad(loss, end)[0]


@dataclass(frozen=True)
class _Student:
    """What the steps have in common; `labels` (N, K) are probabilities."""

    network: ConvNet
    images: Tensor
    labels: Tensor
    step_size: Tensor
    minibatches: Tensor
    augmentations: Sequence[Augmentation] | None
    dtype: torch.dtype | None

    def walk(self, parameters: Tensor) -> list[Tensor]:
        """The parameters before the first step and after each, T + 1 vectors."""
        path = [parameters]
        for step, index in enumerate(self.minibatches):
            parameters = path[-1].detach().requires_grad_()
            z = tangents.logits(self.network, self.augmented(self.images[index], step), parameters, self.dtype)
            seed = (z.detach().softmax(1) - self.labels[index]) / len(index)
            (gradient,) = torch.autograd.grad(z, parameters, seed)
            path.append(torch.addcmul(path[-1], self.step_size, gradient, value=-1))
        return path

    def augmented(self, images: Tensor, step: int) -> Tensor:
        return images if self.augmentations is None else self.augmentations[step](images)

    def adjoint(
        self, step: int, parameters: Tensor, direction: Tensor, exact: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The gradients of s = -a <direction, g> in minibatch, label logits and parameters (None unless `exact`), and
        <direction, g>; order: minibatch, label logits, <direction, g>, parameters.

        With p the prediction, q the label and dz the tangent of the logits, each row of the batch of B has
        <direction, g> = <p - q, dz> / B, whose gradients are p (dz - <p, dz>) / B in the logits, (p - q) / B in the
        tangent, -q (dz - <q, dz>) / B in the label logits.
        """
        index = self.minibatches[step]
        images = self.images[index].requires_grad_()
        parameters = parameters.detach().requires_grad_(exact)
        augmented = self.augmented(images, step)
        z, dz = tangents.dual_logits(self.network, augmented, parameters, direction, self.dtype)
        p, q, along = z.detach().softmax(1), self.labels[index], dz.detach()
        slope = ((p - q) * along).sum() / len(index)
        scale = -self.step_size / len(index)
        seeds = scale * _centred(p, along), scale * (p - q)
        gradients = torch.autograd.grad((z, dz), (images, parameters) if exact else (images,), seeds)
        return gradients[0], -scale * _centred(q, along), slope, gradients[1] if exact else None


def _centred(weights: Tensor, values: Tensor) -> Tensor:
    """weights * (values - their mean under the weights), row by row."""
    return weights * (values - (weights * values).sum(1, keepdim=True))


def _check(network, start, target, images, logits, step_size, minibatches, augmentations, mode, precision) -> None:
    tangents.check(network)
    for name, value, allowed in (("mode", mode, MODES), ("precision", precision, PRECISIONS)):
        if value not in allowed:
            raise InputError(
                f"The {name} {value!r} is unknown; it is one of {', '.join(allowed)}.{nearest(value, allowed)}"
            )
    size = sum(one.numel() for one in network.parameters())
    for name, one in (("start", start), ("target", target)):
        if one.shape != (size,):
            raise InputError(f"{name} has shape {tuple(one.shape)}; this network has parameters of shape ({size},).")
    if start.dtype not in (torch.float32, torch.float64) or (precision == "bf16" and start.dtype != torch.float32):
        raise InputError(f"start is {start.dtype}; it must be float32, or float64 in a precision other than 'bf16'.")
    for name, one in (("target", target), ("images", images), ("logits", logits)):
        if (one.dtype, one.device) != (start.dtype, start.device):
            raise InputError(
                f"{name} is {one.dtype} on {one.device} where start is {start.dtype} on {start.device}; all must agree."
            )
    if images.dim() != 4 or logits.shape != (len(images), network.classifier.out_features):
        raise InputError(
            f"images have shape {tuple(images.shape)} and logits {tuple(logits.shape)}; they must be (N, C, H, W) and "
            f"(N, {network.classifier.out_features})."
        )
    if step_size.dim() != 0:
        raise InputError(f"step_size has shape {tuple(step_size.shape)}; it must be one number.")
    if minibatches.device != images.device:
        raise InputError(
            f"minibatches are on {minibatches.device} where images are on {images.device}; move them there."
        )
    _check_steps(len(images), minibatches, augmentations)


def _check_steps(count: int, minibatches: Tensor, augmentations: Sequence[Augmentation] | None) -> None:
    if minibatches.dim() != 2 or minibatches.dtype != torch.int64 or not minibatches.numel():
        raise InputError(
            f"minibatches are {minibatches.dtype} of shape {tuple(minibatches.shape)}; they must be int64 (T, B), "
            "neither 0."
        )
    if minibatches.is_cpu and not 0 <= minibatches.min() <= minibatches.max() < count:
        raise InputError(f"minibatches name images outside the {count} that there are.")
    rows = [] if augmentations is None else [len(one.table) for one in augmentations]
    if augmentations is not None and rows != [minibatches.shape[1]] * len(minibatches):
        raise InputError(
            f"augmentations are {len(rows)} draws; for {len(minibatches)} steps it must be as many, each with "
            f"{minibatches.shape[1]} rows, or None."
        )
