"""The loop of every distiller: checkpoints, resuming, and what is said where it stops."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddlnl.training import NotFinite, Progress


class Run(typing.Protocol):
    """A distillation that goes on by one iteration at a time."""

    def begin(self) -> None:
        """What comes before the first iteration; a run that resumes has done it."""

    def iterate(self, iteration: int) -> object:
        """One update in place. Raises `training.NotFinite` naming the tensor and the iteration."""

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""


def checkpoints(iterations: int, parts: Sequence[float]) -> list[int]:
    """The iterations before which a run is evaluated, ascending: `parts` of `iterations`, and the end."""
    return sorted({round(part * iterations) for part in parts} | {iterations})


def follow(run: Run, due: Sequence[int], progress: Progress | None = None) -> Iterator[int]:
    """Iterate until the last of `due`, and yield each of them while `run` is as it was before that iteration.

    A run that resumes yields those that are still to come. A `training.NotFinite` of an iteration is raised with the
    iteration from which the run would resume.
    """
    first = 0
    if progress and (saved := progress.load()):
        first = saved[0]
        run.load(saved[1])
    else:
        run.begin()
    for iteration in range(first, due[-1] + 1):
        if iteration in due:
            yield iteration
        if iteration == due[-1]:
            return
        if progress:
            progress.save(iteration, run.state)
        try:
            run.iterate(iteration)
        except NotFinite as error:
            kept = progress.load() if progress else None
            state = f"the state before iteration {kept[0]} is kept" if kept else "no earlier state was kept"
            raise NotFinite(f"{error} The last good checkpoint: {state}.") from error


def require_finite(method: str, where: str, **tensors: Tensor) -> None:
    """Raise `training.NotFinite` naming the first of the tensors that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NotFinite(f"{method}: {name.replace('_', ' ')} is not finite in {where}.")
