"""GSAM (arXiv 2203.08065) with the adaptive neighbourhood of ASAM (arXiv 2102.11600), on plain SGD, for a stack.

Tensors are (M, ...), row m that of network m; norms and inner products run over all tensors of a network. They are
summed in float64, so that the numbers of a network do not depend on who shares its stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

EPSILON = 1e-12


def step(
    parameters: Sequence[Tensor], losses: Callable[[], Tensor], lr: float, rho: float, alpha: float
) -> tuple[Tensor, Tensor]:
    """One step in place: w <- w - lr d, with e = `perturbation` at w and d = `direction` of the gradients at w, w + e.

    Args:
        parameters: M networks' parameters, (M, ...) leaf tensors.
        losses: the (M,) losses at the present values of `parameters`, each of its own network; called twice.

    Returns the (M,) losses at w and at w + e, detached. With rho = 0 it is a step of plain SGD.
    """
    before = losses()
    gradient = torch.autograd.grad(before.sum(), parameters)
    start = [tensor.detach().clone() for tensor in parameters]
    with torch.no_grad():
        for tensor, one in zip(parameters, perturbation(start, gradient, rho), strict=True):
            tensor.add_(one)
    after = losses()
    there = torch.autograd.grad(after.sum(), parameters)
    with torch.no_grad():
        for tensor, old, one in zip(parameters, start, direction(gradient, there, alpha), strict=True):
            tensor.copy_(old.sub_(one, alpha=lr))
    return before.detach(), after.detach()


def perturbation(weights: Sequence[Tensor], gradient: Sequence[Tensor], rho: float) -> list[Tensor]:
    """e = rho w^2 g / (|| |w| g || + 1e-12), elementwise products, one norm per network."""
    scaled = [w * g for w, g in zip(weights, gradient, strict=True)]
    scale = rho / (_norm(scaled) + EPSILON)
    return [_spread(scale, w) * w * one for w, one in zip(weights, scaled, strict=True)]


def direction(gradient: Sequence[Tensor], there: Sequence[Tensor], alpha: float) -> list[Tensor]:
    """d = g' - alpha (g - c ||g|| g' / (||g'|| + 1e-12)), c = <g, g'> / (||g|| ||g'|| + 1e-12), g' = `there`.

    What alpha weighs is the part of the gradient at w that is orthogonal to g', and it is subtracted.
    """
    length, length_there = _norm(gradient), _norm(there)
    product = sum(_sum(g * h) for g, h in zip(gradient, there, strict=True))
    along = product / (length * length_there + EPSILON) * length / (length_there + EPSILON)
    return [h - alpha * (g - _spread(along, h) * h) for g, h in zip(gradient, there, strict=True)]


def _sum(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).sum(1, dtype=torch.float64)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    each = [torch.linalg.vector_norm(tensor.flatten(1), dim=1, dtype=torch.float64) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack(each), dim=0)


def _spread(factor: Tensor, like: Tensor) -> Tensor:
    """(M,) float64 factors in the shape and type that multiply an (M, ...) tensor."""
    return factor.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
