"""The exact solution of RCIG's inner problem, and how far the few steps of its solvers are from it.

With the last layer solved analytically the inner problem is kernel ridge regression: the kernel is the empirical NTK of
the other layers plus that of the last layer's features. What the steps leave undone is in the published method an
implicit regulariser, so the exact solution is a yardstick and no better method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ddlnl import rcig, rcig_solve
from ddlnl.datasets import ImageSet
from ddlnl.preprocess import Preprocessing
from ddlnl.rcig_network import pool
from ddlnl.rcig_settings import Settings
from ddlnl.rcig_solve import Support

_CHUNK = 2**26  # numbers of the Jacobian at a time


def tau_exact(support: Support, labels: Tensor) -> Tensor:
    """The tangent (P,) that minimises the inner loss for labels (m, K):

        tau = J' (Theta + (H H' + ridge I) x I)^-1 vec(Y),    Theta = J J' (m K, m K)

    J is without the kernel of the last layer, which ridge regression stands for. Costs the product of J with itself and
    the factorisation of an (m K, m K) matrix in float64: for mK up to about 5,000.
    """
    count, classes = labels.shape
    gram = support.factor @ support.factor.T
    system = ntk(support) + torch.kron(gram, torch.eye(classes).to(gram))
    weights = torch.cholesky_solve(labels.double().reshape(-1, 1), torch.linalg.cholesky(system))
    return _pull(support, weights.view(count, classes))


def ntk(support: Support) -> Tensor:
    """Theta, (m K, m K) float64: the products of the gradients of all logits in all parameters but the last kernel.

    A gradient in a kernel is the cotangent of the pre-activations times the patches that the kernel sees, so it is made
    for one image at a time, all logits together, and for as many output channels as `_CHUNK` allows.
    """
    classes, count = support.network.classes, len(support.images)
    theta = torch.eye(classes, dtype=torch.float64).repeat(count, count).to(support.images.device)  # the last bias
    for patches, cotangents in _rank_one(support):
        step = max(1, _CHUNK // (count * classes * patches.shape[2]))
        for part in cotangents.split(step, 2):
            jacobian = torch.matmul(part.flatten(1, 2), patches).unflatten(1, (classes, -1)).flatten(2).flatten(0, 1)
            theta += (jacobian @ jacobian.T).double()
    return theta


def _rank_one(support: Support) -> Iterator[tuple[Tensor, Tensor]]:
    """For every convolution the patches that its kernel sees, (m, H W, 9 c + 1) with a 1 for the bias, and the
    cotangents of its results in all logits, (m, K, c', H W)."""
    network = support.network
    *blocks, (kernel, bias) = network.layers(support.base)
    hidden, seen, results = support.images, [], []
    with torch.enable_grad():
        for block, layer in enumerate(blocks):
            patches = F.unfold(hidden.detach(), 3, padding=network.padding(block)).mT
            seen.append(torch.cat([patches, torch.ones_like(patches[..., :1])], 2))
            results.append(F.conv2d(hidden, *layer, padding=network.padding(block)).requires_grad_())
            hidden = pool(network, results[-1])
        logits = F.linear(hidden.flatten(1), kernel, bias).sum(0)  # an image's results reach its own logits alone
    each = [torch.autograd.grad(logit, results, retain_graph=True) for logit in logits.unbind()]
    for patches, cotangents in zip(seen, zip(*each, strict=True), strict=True):
        yield patches, torch.stack(cotangents, 1).flatten(3)


def _pull(support: Support, cotangent: Tensor) -> Tensor:
    tangent = support.pull(cotangent)
    tangent[support.network.head] = 0
    return tangent


def inner_loss(support: Support, labels: Tensor, tangent: Tensor) -> float:
    """The inner loss at a tangent, with the last layer at its optimum."""
    residual = labels - support.push(tangent)
    square = tangent.double().square().sum()
    return float(support.scale / 2 * ((residual * support.solve(residual)).sum() + square))


def shortfall(
    train: ImageSet,
    preprocessing: Preprocessing,
    ipcs: Sequence[int] = (1,),
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """How far the steps of Adam (at its tuned learning rate) and of conjugate gradients are from the optimum, on the
    initial set of each IPC and with an untrained network.

    Returns one row per IPC and solver: `unknowns` (m K), `steps`, `lr` (NaN for conjugate gradients), `left`, the share
    (L - L*) / (L_0 - L*) of the possible decrease of the loss that is left, and `distance`, |tau - tau*| / |tau*|.
    """
    rows = []
    settings = replace(settings, pool=1, solver="adam", hessian_lr=1.0)  # the Hessian is not solved for here
    for ipc in ipcs:
        run = rcig.Rcig(train, ipc, settings, preprocessing, seed, torch.device(device))
        run.begin()
        support, labels, steps = run.quadratic(run.pool.base[0]), run.support()[1], settings.inner_steps
        best = tau_exact(support, labels)
        start, least = (inner_loss(support, labels, one) for one in (torch.zeros_like(best), best))
        tuned = run.rates["inner"]
        for solver, lr, found in (
            ("adam", tuned, rcig_solve.inner(support, labels, tuned, steps).tangent),
            ("cg", float("nan"), rcig_solve.inner_by_cg(support, labels, steps).tangent),
        ):
            rows.append(
                {
                    "ipc": ipc,
                    "unknowns": labels.numel(),
                    "solver": solver,
                    "steps": steps,
                    "lr": lr,
                    "left": (inner_loss(support, labels, found) - least) / (start - least),
                    "distance": float((found - best).norm() / best.norm()),
                }
            )
    return pd.DataFrame(rows)
