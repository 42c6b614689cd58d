"""RCIG's outer loss and meta-gradient, in closed form and in bounded memory.

Images couple only through their features and outputs, by matrix algebra of m rows. So the loss is differentiated at
that level by hand, and what reaches an image is pulled back chunk by chunk: exact, with the memory of one chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ddlnl.rcig_network import Linearised, dual
from ddlnl.rcig_solve import Support, masked


class Direct(NamedTuple):
    """The outer loss and its gradients at a fixed tangent: support images (m, C, H, W), support labels (m, K), the log
    temperature (), and the tangent (P,)."""

    loss: Tensor
    accuracy: Tensor
    images: Tensor
    labels: Tensor
    log_temperature: Tensor
    tangent: Tensor


def mirrored(images: Tensor) -> Tensor:
    """Images (n, C, H, W) and then their mirror images, (2n, C, H, W)."""
    return torch.cat([images, images.flip(-1)])


def fold_mirrored(gradient: Tensor) -> Tensor:
    """The transpose of `mirrored`."""
    own, other = gradient.chunk(2)
    return own + other.flip(-1)


def margin(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over rows of min(largest - second largest entry, 1 / (2 K)) of labels (m, K), and its gradient."""
    cap = 1 / (2 * labels.shape[1])
    top, where = labels.topk(2, 1)
    gap = top[:, 0] - top[:, 1]
    below = (gap < cap).to(labels) / len(labels)
    gradient = torch.zeros_like(labels).scatter_(1, where, torch.stack([below, -below], 1))
    return gap.clamp(max=cap).mean(), gradient


def outer(
    support: Support,
    labels: Tensor,
    tangent: Tensor,
    log_temperature: Tensor,
    real: Tensor,
    targets: Tensor,
    with_margin: bool = True,
    chosen: Tensor | None = None,
    chosen_real: Tensor | None = None,
) -> Direct:
    """Cross-entropy of temperature-scaled predictions on real images, minus the label margin, with all gradients.

    Predictions are D(z; tangent) + h(z)' H' M (Y - D(tangent)); H and M depend on the images.

    Args:
        labels: (m, K) of the support. real: (B, C, H, W); targets: (B,) int64.
        chosen, chosen_real: (m,) and (B,) of 0 and 1, the rows with a gradient (None: all).
    """
    residual = labels - support.push(tangent)
    answer = support.solve(residual)
    head = support.features.T @ answer
    seen = _real_rows(support, tangent, head, log_temperature, real, targets, chosen_real)
    back = support.solve(support.features @ seen.head)
    features = answer @ seen.head.T - _through_gram(back, answer, support.features)
    loss, gradient = seen.loss, back
    if with_margin:
        value, slope = margin(labels.double())
        loss, gradient = loss - value, back - slope
    return Direct(
        loss,
        seen.accuracy,
        pull_to_images(support, [tangent], masked(features, chosen), [masked(-back, chosen)]),
        gradient.to(labels),
        seen.log_temperature,
        seen.tangent + support.pull(-back, chosen),
    )


def implicit(
    support: Support, labels: Tensor, tangent: Tensor, direction: Tensor, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The implicit gradient in support images and labels: that of scale <D(direction), M (Y - D(tangent))>."""
    answer = support.solve(labels - support.push(tangent))
    back = support.scale * support.solve(support.push(direction))
    features = -_through_gram(back, answer, support.features)
    outputs = [masked(-back, chosen), masked(support.scale * answer, chosen)]
    images = pull_to_images(support, [tangent, direction], masked(features, chosen), outputs)
    return images, back.to(labels)


def clip(direct: Tensor, other: Tensor) -> Tensor:
    """`other`, shortened to the norm of `direct` where it is longer (norms of the whole tensors)."""
    limit, length = direct.norm(), other.norm()
    return torch.where(length > limit, other * (limit / length), other)


class _Real(NamedTuple):
    """What the real batch gives: loss, accuracy, gradients in the ridge solution (d, K), log temperature, tangent."""

    loss: Tensor
    accuracy: Tensor
    head: Tensor
    log_temperature: Tensor
    tangent: Tensor


def _real_rows(
    support: Support,
    tangent: Tensor,
    head: Tensor,
    log_temperature: Tensor,
    real: Tensor,
    targets: Tensor,
    chosen: Tensor | None,
) -> _Real:
    """Every chunk of the real batch needs one pass forward and one back, and nothing of the others."""
    temperature = log_temperature.double().exp()
    loss, hits, slope = (torch.zeros((), dtype=torch.float64, device=real.device) for _ in range(3))
    gradient, in_head = torch.zeros_like(tangent), torch.zeros_like(head)
    for start in range(0, len(real), support.rows):
        part = slice(start, start + support.rows)
        linear = Linearised(support.network, support.base, real[part], support.rows)
        features = linear.features.double()
        predictions = linear.jvp(tangent).double() + features @ head
        logarithms = torch.log_softmax(temperature * predictions, 1)
        index = targets[part, None]
        loss -= logarithms.gather(1, index).sum() / len(real)
        hits += (predictions.argmax(1) == targets[part]).double().sum() / len(real)
        change = logarithms.exp().scatter_add_(1, index, -torch.ones_like(index, dtype=torch.float64))
        change *= temperature / len(real)
        slope += (change * predictions).sum()
        in_head += features.T @ change
        within = None if chosen is None else chosen[part]
        gradient += linear.vjp(masked(change, within).to(tangent))
    return _Real(loss, hits, in_head, slope.to(log_temperature), gradient)


def _through_gram(back: Tensor, answer: Tensor, features: Tensor) -> Tensor:
    """(back answer' + answer back') H for (m, K), (m, K), (m, d): minus the gradient through M = (H H' + r I)^-1."""
    return back @ (answer.T @ features) + answer @ (back.T @ features)


def pull_to_images(support: Support, tangents: list[Tensor], features: Tensor, outputs: list[Tensor]) -> Tensor:
    """The gradient in the support images of <features, H> + sum_j <outputs_j, D(tangents_j)>, chunk by chunk.

    features (m, d) and outputs (m, K) are cotangents.
    """
    gradients = []
    for start in range(0, len(support.images), support.rows):
        part = slice(start, start + support.rows)
        with torch.enable_grad():
            images = support.images[part].detach().requires_grad_()
            found = dual(support.network, support.base, tangents, images)
            values = [found[0], *found[1]]
            cotangents = [one[part].to(images) for one in (features, *outputs)]
            gradients += torch.autograd.grad(values, images, cotangents)
    return torch.cat(gradients)
