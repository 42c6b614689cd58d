"""An outer iteration of RCIG against the same written with torch.func, where every derivative is a transform."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp

from ddlnl import rcig_meta, rcig_solve
from ddlnl.bench._cases import CLASSES, SIDE, Case, Pair, _part
from ddlnl.generators import generator
from ddlnl.rcig_meta import fold_mirrored, mirrored
from ddlnl.rcig_network import BETA, Network
from ddlnl.rcig_solve import Support

L2_RATE, STEPS, RATES = 5e-4, 20, {"inner": 3e-4, "hessian": 3.0}


class Generic:
    """The formulas of the method, differentiated by torch.func: nothing is kept between steps or simplified."""

    def __init__(self, network: Network, base: Tensor, labels: Tensor, ridge: float) -> None:
        self.network, self.base, self.labels, self.ridge = network, base, labels, ridge

    def run(self, flat: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features."""
        *blocks, head = self.network.layers(flat)
        for layer in blocks:
            images = F.avg_pool2d(F.softplus(F.conv2d(images, *layer, padding=1), BETA), 2)
        features = images.flatten(1)
        return F.linear(features, *head), features

    def linearised(self, tangent: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features, and the derivative of the logits in the direction of the tangent."""
        (_, features), (moved, _) = jvp(partial(self.run, images=images), (self.base,), (tangent,))
        return features, moved

    def ridge_solution(self, tangent: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, moved = self.linearised(tangent, mirrored(images))
        doubled = labels.repeat(2, 1)
        gram = features @ features.T + self.ridge * torch.eye(len(doubled), device=features.device)
        return features, doubled - moved, torch.linalg.solve(gram, doubled - moved)

    def inner_loss(self, tangent: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        _, residual, answer = self.ridge_solution(tangent, images, labels)
        return self.ridge / 2 / residual.numel() * ((residual * answer).sum() + tangent.square().sum())

    def outer_loss(self, tangent: Tensor, images: Tensor, labels: Tensor, real: Tensor, targets: Tensor) -> Tensor:
        features, _, answer = self.ridge_solution(tangent, images, labels)
        seen, moved = self.linearised(tangent, real)
        return F.cross_entropy(moved + seen @ (features.T @ answer), targets)

    def meta_gradient(self, images: Tensor, real: Tensor, targets: Tensor) -> Sequence[Tensor]:
        """Both solvers, the direct and the clipped implicit gradient of the images."""
        tangent = torch.zeros_like(self.base)
        optimiser = torch.optim.Adam([tangent], RATES["inner"], fused=True)
        gradient = grad(self.inner_loss)
        for _ in range(STEPS):
            tangent.grad = gradient(tangent, images, self.labels)
            tangent.grad[self.network.head] = 0
            optimiser.step()
        wanted, direct, _ = grad(self.outer_loss, (0, 1, 2))(tangent, images, self.labels, real, targets)
        direction = torch.zeros_like(self.base)
        optimiser = torch.optim.Adam([direction], RATES["hessian"], fused=True)
        for _ in range(STEPS):
            product = jvp(lambda one: gradient(one, images, self.labels), (tangent,), (direction,))[1]
            direction.grad = product - wanted
            optimiser.step()

        def coupling(images: Tensor, labels: Tensor) -> Tensor:
            return -(direction * gradient(tangent, images, labels)).sum()

        implicit, _ = grad(coupling, (0, 1))(images, self.labels)
        return direct, rcig_meta.clip(direct, implicit)


def _iteration(device: torch.device, scale: float, ipc: int) -> list[Pair]:
    """The shapes of CIFAR-10; the result is what the images' update is made of."""
    network = Network(CLASSES, width=_part(128, scale))
    source = generator(0, "bench")
    count, batch = CLASSES * _part(ipc, scale, 1), _part(1024, scale)
    base = network.initialise(source).to(device)
    images, real = ((torch.randn(size, 3, SIDE, SIDE, generator=source) / 2).to(device) for size in (count, batch))
    labels = (torch.eye(CLASSES).repeat_interleave(count // CLASSES, 0) - 1 / CLASSES).to(device)
    targets = torch.randint(CLASSES, (batch,), generator=source).to(device)
    ridge, rows = L2_RATE * count, batch if device.type == "cuda" else 64

    def ours() -> Sequence[Tensor]:
        support, both = Support(network, base, mirrored(images), ridge, rows), labels.repeat(2, 1)
        tangent, _, _ = rcig_solve.inner(support, both, RATES["inner"], STEPS)
        zero = torch.zeros((), device=device)
        direct = rcig_meta.outer(support, both, tangent, zero, real, targets, with_margin=False)
        direction, _ = rcig_solve.inverse_hessian(support, direct.tangent, RATES["hessian"], STEPS)
        implicit, _ = rcig_meta.implicit(support, both, tangent, direction)
        mine = fold_mirrored(direct.images)
        return mine, rcig_meta.clip(mine, fold_mirrored(implicit))

    return [Pair(partial(Generic(network, base, labels, ridge).meta_gradient, images, real, targets), ours)]


CASES = tuple(
    Case(
        f"rcig_iteration_{ipc}",
        f"outer iteration of RCIG, CIFAR-10 shapes, {ipc} images per class, width 128, 20 steps of both solvers",
        5,
        partial(_iteration, ipc=ipc),
        tolerance=0.05,  # forty steps of Adam on gradients near its epsilon
        slow=True,
    )
    for ipc in (1, 10)
)
