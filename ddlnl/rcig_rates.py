"""The learning rates of RCIG's two solvers: chosen at the start, adapted in the run, and how often solves failed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddlnl.rcig_settings import Settings
from ddlnl.rcig_solve import score
from ddlnl.training import NotFinite

SOLVES = ("inner", "hessian")
ADAPTED_EVERY = 50  # iterations
_TUNED_FROM = {"inner": 1e-5, "hessian": 5e-5}
_LARGEST = 1e3


def tune(sequence: Callable[[float], Tensor], start: float) -> float:
    """The first learning rate start, 1.2 start, ... whose sequence does not descend at every step, times 0.84.

    Raises `NotFinite` where every learning rate up to 1000 descends, which no quadratic does.
    """
    lr = start
    while score(sequence(lr)) == 1:
        lr *= 1.2
        if lr > _LARGEST:
            raise NotFinite(f"RCIG: no learning rate up to {_LARGEST:g} makes the solver fail, so none can be chosen.")
    return 0.84 * lr


class Rates:
    """The learning rate (NaN: not chosen yet) and the score of every solve, for "inner" and "hessian"."""

    def __init__(self, settings: Settings) -> None:
        given = {"inner": settings.inner_lr, "hessian": settings.hessian_lr}
        self.by_adam = settings.solver == "adam"
        self.rates = {
            solve: torch.tensor(torch.nan if given[solve] is None else given[solve], dtype=torch.float64)
            for solve in SOLVES
        }
        self.scores = {solve: torch.full((settings.iterations,), torch.nan) for solve in SOLVES}

    def __getitem__(self, solve: str) -> float:
        return float(self.rates[solve])

    def tune(self, solve: str, sequence: Callable[[float], Tensor]) -> None:
        """Choose the learning rate by `sequence`, unless it was given or there is none."""
        if self.by_adam and torch.isnan(self.rates[solve]):
            self.rates[solve].fill_(tune(sequence, _TUNED_FROM[solve]))

    def note(self, solve: str, iteration: int, sequence: Tensor, adapt: bool) -> None:
        """Keep the score of a solve. With `adapt`, every 50 iterations: a smaller learning rate where 29 % of the
        solves since then diverged, else a larger one where 70 % descended at every step."""
        scores = self.scores[solve]
        scores[iteration] = score(sequence)
        if not (adapt and self.by_adam and iteration and iteration % ADAPTED_EVERY == 0):
            return
        first = iteration - ADAPTED_EVERY + 1 if iteration > ADAPTED_EVERY else 0
        recent = scores[first : iteration + 1].double()
        if float((recent == -1).double().mean()) >= 0.29:
            self.rates[solve] *= 0.9
        elif float((recent == 1).double().mean()) >= 0.70:
            self.rates[solve] *= 1.05

    def report(self, iteration: int) -> dict[str, float | int]:
        """The learning rates, and how many of the first solves did not descend at every step, or ended higher."""
        rates = {f"{solve}_lr": self[solve] for solve in SOLVES if self.by_adam}
        kept = {solve: scores[:iteration] for solve, scores in self.scores.items()}
        rates |= {f"{solve}_not_monotone": int((scores != 1).sum()) for solve, scores in kept.items()}
        return rates | {f"{solve}_diverged": int((scores == -1).sum()) for solve, scores in kept.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that hold all of it."""
        found = {f"rate.{solve}": rate for solve, rate in self.rates.items()}
        return found | {f"scores.{solve}": scores for solve, scores in self.scores.items()}
