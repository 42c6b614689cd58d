"""The optimiser of RCIG's variables, and the average that is its product."""

from __future__ import annotations

import torch
from torch import Tensor

DECAYS, EPSILON = (0.9, 0.999), 1e-16


class AdaBelief:
    """AdaBelief (arXiv 2010.07468) in the recursion of the published runs, which many packages do not have:

    e_t = g_t - m_{t-1}        (the momentum before its update)
    m_t = b1 m_{t-1} + (1 - b1) g_t        v_t = b2 v_{t-1} + (1 - b2) e_t^2 + eps
    p_t = p_{t-1} - lr m_t / (1 - b1^t) / (sqrt(v_t / (1 - b2^t)) + eps)
    """

    def __init__(self, variable: Tensor, lr: float) -> None:
        self.variable, self.lr = variable, lr
        self.mean, self.square = torch.zeros_like(variable), torch.zeros_like(variable)

    def step(self, gradient: Tensor, count: int) -> None:
        """Update the variable in place; `count` is t, from 1."""
        first, second = DECAYS
        surprise = gradient - self.mean
        self.mean.mul_(first).add_(gradient, alpha=1 - first)
        self.square.mul_(second).addcmul_(surprise, surprise, value=1 - second).add_(EPSILON)
        spread = (self.square / (1 - second**count)).sqrt_().add_(EPSILON)
        self.variable.addcdiv_(self.mean, spread, value=-self.lr / (1 - first**count))


class Average:
    """Exponential moving average with bias correction: hidden = d hidden + (1 - d) p, average = hidden / (1 - d^t)."""

    def __init__(self, variable: Tensor, decay: float) -> None:
        self.variable, self.decay = variable, decay
        self.hidden = torch.zeros_like(variable)

    def step(self) -> None:
        self.hidden.mul_(self.decay).add_(self.variable, alpha=1 - self.decay)

    def value(self, count: int) -> Tensor:
        """The average after `count` steps; before the first, the variable itself."""
        return self.hidden / (1 - self.decay**count) if count else self.variable.clone()
