"""The exact solution of RCIG's inner problem, and how far the few steps of its solvers are from it.

With the last layer solved analytically the inner problem is kernel ridge regression: the kernel is the empirical NTK of
the other layers plus that of the last layer's features. What the steps leave undone is in the published method an
implicit regulariser, so the exact solution is a yardstick and no better method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from ddlnl import rcig, rcig_solve
from ddlnl.datasets import ImageSet
from ddlnl.preprocess import Preprocessing
from ddlnl.rcig_settings import Settings
from ddlnl.rcig_solve import Support


def tau_exact(support: Support, labels: Tensor) -> Tensor:
    """The tangent (P,) that minimises the inner loss for labels (m, K):

        tau = J' (Theta + (H H' + ridge I) x I)^-1 vec(Y),    Theta = J J' (m K, m K)

    J is without the kernel of the last layer, which ridge regression stands for. Costs m K products with J and J', and
    the factorisation of an (m K, m K) matrix in float64: for mK up to about 5,000.
    """
    count, classes = labels.shape
    system = labels.new_zeros(count * classes, count * classes, dtype=torch.float64)
    for column in range(count * classes):
        unit = torch.zeros_like(labels)
        unit.view(-1)[column] = 1
        system[:, column] = support.push(_pull(support, unit)).flatten()
    system = (system + system.T) / 2  # but for rounding it is symmetric
    gram = support.factor @ support.factor.T
    system += torch.kron(gram, torch.eye(classes).to(gram))
    weights = torch.cholesky_solve(labels.double().reshape(-1, 1), torch.linalg.cholesky(system))
    return _pull(support, weights.view(count, classes))


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
        run.tune()
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
