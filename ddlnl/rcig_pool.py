"""RCIG's pool: networks of different ages, trained on the distilled set as it changes."""

from __future__ import annotations

import torch
from torch import Tensor

from ddlnl.generators import generator
from ddlnl.rcig_network import Linearised, Network
from ddlnl.rcig_settings import Settings
from ddlnl.rcig_solve import adam


def train_steps(
    network: Network,
    flat: Tensor,
    optimiser: torch.optim.Adam,
    batches: list[tuple[Tensor, Tensor]],
    rows: int,
) -> None:
    """One step per batch (images (B, C, H, W), labels (B, K)) on sum 1/2 (logits - labels)^2 / (B K), in place."""
    for images, labels in batches:
        linear = Linearised(network, flat, images, rows)
        flat.grad = linear.vjp((linear.logits - labels) / labels.numel())
        optimiser.step()
    flat.grad = None


class Pool:
    """M networks as one stack: weights and Adam's two moments, (M, P) each, and their ages in steps.

    Network m is initialised from (seed, m, how often it began anew), whatever happens to the others.
    """

    def __init__(self, network: Network, settings: Settings, seed: int, device: torch.device, rows: int) -> None:
        self.network, self.settings, self.seed, self.rows = network, settings, seed, rows
        self.base = torch.empty(settings.pool, network.parameters, device=device)
        self.mean, self.square = torch.zeros_like(self.base), torch.zeros_like(self.base)
        self.ages, self.lives = (torch.zeros(settings.pool, dtype=torch.int64) for _ in range(2))
        for model in range(settings.pool):
            self._initialise(model)

    def __len__(self) -> int:
        return len(self.base)

    def _initialise(self, model: int) -> None:
        source = generator(self.seed, "pool", model, int(self.lives[model]))
        self.base[model] = self.network.initialise(source).to(self.base)
        self.mean[model], self.square[model], self.ages[model] = 0, 0, 0

    def adam(self, model: int, variable: Tensor, copied: bool = False) -> torch.optim.Adam:
        """The optimiser of a network, for its weights or (`copied`) for a copy of them that must leave no trace."""
        moments = self.mean[model], self.square[model]
        moments = [one.clone() for one in moments] if copied else moments
        return adam(variable, self.settings.pool_lr, *moments, int(self.ages[model]))

    def train(self, model: int, images: Tensor, labels: Tensor, steps: int, source: torch.Generator) -> None:
        """`steps` steps on the support (images (m, C, H, W), labels (m, K)); an old network begins anew after them."""
        settings = self.settings
        flat, size, count = self.base[model], settings.pool_rows, len(images)
        if settings.published_quirks and settings.mirror and size:
            count //= 2
        batches = [(images, labels)] * steps
        if size and size < len(images):
            drawn = [torch.randperm(count, generator=source)[:size].to(images.device) for _ in range(steps)]
            batches = [(images[index], labels[index]) for index in drawn]
        train_steps(self.network, flat, self.adam(model, flat), batches, self.rows)
        self.ages[model] += steps
        if self.ages[model] >= settings.pool_age:
            self.lives[model] += 1
            self._initialise(model)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that hold all of it."""
        return {f"pool.{name}": getattr(self, name) for name in ("base", "mean", "square", "ages", "lives")}
