"""RCIG's inner problem: linearised network, ridge regression in place of the last layer.

With the last layer solved analytically the inner loss is exactly quadratic in the tangent t (a direction in weight
space). With m support images, K classes, labels Y, features H and D(t) = J t the derivative of the logits,

    M = (H H' + ridge I)^-1      scale = ridge / (m K)      loss = scale / 2 (<Y - D, M (Y - D)> + |t|^2)
    gradient = scale (t - J' M (Y - D))                     Hessian v = scale (v + J' M D(v))

so one factorisation and one pass of the network serve all inner steps, all Hessian products and the meta-gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddlnl.rcig_network import Linearised, Network
from ddlnl.training import NotFinite

SOLVERS = ("adam", "cg")
_JITTER = 1e-6  # of the mean diagonal, where the Gram matrix is not positive to rounding

Rows = Iterator[Tensor | None]
EVERY_ROW: Rows = itertools.repeat(None)


class Support:
    """The quadratic of one network on one support set; everything of size m is float64.

    Args: base (P,); images (m, C, H, W); ridge: on the last layer and on the tangent alike; rows: images per call.
    `jittered` tells whether the Gram matrix needed help. Raises `NotFinite` where it cannot be factorised even so.
    """

    def __init__(self, network: Network, base: Tensor, images: Tensor, ridge: float, rows: int) -> None:
        self.network, self.base, self.images, self.ridge, self.rows = network, base, images, ridge, rows
        self.linear = Linearised(network, base, images, rows)
        self.features = self.linear.features.double()
        self.scale = ridge / (len(images) * network.classes)
        self.factor, self.jittered = _factorise(self.features, ridge)

    def solve(self, right: Tensor) -> Tensor:
        """M applied to (m, k), in float64."""
        return torch.cholesky_solve(right.double(), self.factor)

    def pull(self, cotangent: Tensor, chosen: Tensor | None = None) -> Tensor:
        """J' of an (m, K) cotangent, (P,), through the rows where `chosen` (m,) is 1 (None: all)."""
        return self.linear.vjp(masked(cotangent, chosen).to(self.base))

    def push(self, tangent: Tensor) -> Tensor:
        """D(tangent), (m, K)."""
        return self.linear.jvp(tangent).double()

    def hessian(self, direction: Tensor, chosen: Tensor | None = None, kernel: bool = True) -> tuple[Tensor, Tensor]:
        """The Hessian times a direction (P,), and the quadratic form <direction, Hessian direction>.

        kernel: whether the kernel of the last layer belongs to the tangent (the direction is then zero there).
        """
        pushed = masked(self.push(direction), chosen)
        answer = self.solve(pushed)
        product = self.pull(answer, chosen).add_(direction).mul_(self.scale)
        if not kernel:
            product[self.network.head] = 0
        return product, self.scale * (_dot(direction, direction) + (pushed * answer).sum())


def masked(values: Tensor, chosen: Tensor | None) -> Tensor:
    """Rows where `chosen` is 0 set to zero: what a row contributes as a constant has no gradient."""
    return values if chosen is None else values * chosen[:, None].to(values)


def _factorise(features: Tensor, ridge: float) -> tuple[Tensor, bool]:
    gram = features @ features.T
    gram.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(gram)
    jittered = bool(failed)
    if jittered:
        gram.diagonal().add_(_JITTER * gram.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            raise NotFinite("RCIG: the Gram matrix of the support's features cannot be factorised; it holds NaN?")
    return factor, jittered


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """In float64: whether a solve decreases is decided by the seventh digit."""
    return one.double() @ other.double()


def adam(variable: Tensor, lr: float, mean: Tensor, square: Tensor, count: int) -> torch.optim.Adam:
    """Adam on one flat tensor that has its gradient in `.grad`, with both moments given and `count` steps behind it."""
    optimiser = torch.optim.Adam([variable], lr=lr, fused=True)
    steps = torch.tensor(float(count), device=variable.device)
    optimiser.state[variable] = {"step": steps, "exp_avg": mean, "exp_avg_sq": square}
    return optimiser


def _fresh_adam(variable: Tensor, lr: float, count: int = 0) -> torch.optim.Adam:
    return adam(variable, lr, torch.zeros_like(variable), torch.zeros_like(variable), count)


class Solution(NamedTuple):
    """A tangent (P,), the loss before each step (steps,) float64, and the quadratic at the end."""

    tangent: Tensor
    losses: Tensor
    support: Support


def inner(
    support: Support,
    labels: Tensor,
    lr: float,
    steps: int,
    chosen: Rows = EVERY_ROW,
    drift: Callable[[], Support] | None = None,
    count: int = 0,
    ascend_kernel: bool = False,
) -> Solution:
    """Minimise the inner loss from a zero tangent by `steps` steps of Adam.

    The kernel of the last layer stays zero, since ridge regression plays its part.

    Args:
        labels: (m, K). chosen: per step, the rows that have a gradient.
        drift, count, ascend_kernel: the published behaviour where they are given. The base weights move: `drift` is the
            quadratic after each step; Adam's counter starts at that of the pool's model; the kernel follows its
            gradient upwards with rate 1.
    """
    head = support.network.head
    tangent = torch.zeros_like(support.base)
    optimiser = _fresh_adam(tangent, lr, count)
    losses = labels.new_zeros(steps, dtype=torch.float64)
    for step in range(steps):
        residual = labels - support.push(tangent) if step else labels.double()
        answer = support.solve(residual)
        losses[step] = support.scale / 2 * ((residual * answer).sum() + _dot(tangent, tangent))
        gradient = support.pull(answer, next(chosen)).sub_(tangent).mul_(-support.scale)
        upwards = gradient[head].clone() if ascend_kernel else 0
        gradient[head] = 0
        tangent.grad = gradient
        optimiser.step()
        tangent[head] += upwards
        support = drift() if drift else support
    tangent.grad = None
    return Solution(tangent, losses, support)


def inverse_hessian(
    support: Support, gradient: Tensor, lr: float, steps: int, chosen: Rows = EVERY_ROW, kernel: bool = True
) -> tuple[Tensor, Tensor]:
    """Approximate Hessian^-1 gradient by `steps` steps of Adam on <v, H v> / 2 - <gradient, v> from v = 0.

    Returns v (P,) and <v, H v> - 2 <gradient, v> before each step (steps,) float64. kernel: as in `Support.hessian`.
    """
    if not kernel:
        gradient = _without_head(gradient, support.network)
    direction = torch.zeros_like(gradient)
    optimiser = _fresh_adam(direction, lr)
    residuals = gradient.new_zeros(steps, dtype=torch.float64)
    for step in range(steps):
        rows = next(chosen)
        if step:
            product, form = support.hessian(direction, rows, kernel)
            residuals[step] = form - 2 * _dot(direction, gradient)
            direction.grad = product.sub_(gradient)
        else:
            direction.grad = -gradient
        optimiser.step()
    direction.grad = None
    return direction, residuals


def inner_by_cg(support: Support, labels: Tensor, steps: int) -> Solution:
    """As `inner`, by conjugate gradients: monotone, without a learning rate; exact after m K steps but for rounding."""
    right = _without_head(support.pull(support.solve(labels)).mul_(support.scale), support.network)
    start = support.scale / 2 * (labels * support.solve(labels)).sum()
    tangent, residuals = _conjugate_gradients(lambda v: support.hessian(v, kernel=False)[0], right, steps)
    return Solution(tangent, start + residuals / 2, support)


def inverse_hessian_by_cg(support: Support, gradient: Tensor, steps: int, kernel: bool = True) -> tuple[Tensor, Tensor]:
    """As `inverse_hessian`, by conjugate gradients."""
    right = gradient if kernel else _without_head(gradient, support.network)
    return _conjugate_gradients(lambda v: support.hessian(v, kernel=kernel)[0], right, steps)


def _without_head(vector: Tensor, network: Network) -> Tensor:
    vector = vector.clone()
    vector[network.head] = 0
    return vector


def _conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Solve product(v) = right: v and <v, product(v)> - 2 <right, v> before each step."""
    solution, residual = torch.zeros_like(right), right.clone()
    direction, square = residual.clone(), _dot(residual, residual)
    values = right.new_zeros(steps, dtype=torch.float64)
    for step in range(steps):
        values[step] = -_dot(solution, right + residual)
        image = product(direction)
        length = (square / _dot(direction, image)).nan_to_num()  # 0 / 0 once it is solved
        solution += length.to(right) * direction
        residual -= length.to(right) * image
        before, square = square, _dot(residual, residual)
        direction = residual + (square / before).nan_to_num().to(right) * direction
    return solution, values


def score(sequence: Tensor) -> int:
    """+1 where every entry is below the one before, -1 where the last is above the first, else 0 (NaN included)."""
    if bool((sequence.diff() < 0).all()):
        return 1
    return -1 if bool(sequence[-1] > sequence[0]) else 0
