"""DATM: difficulty-aligned trajectory matching (arXiv 2310.05773).

A student that starts at an expert's parameters after some epochs and takes T steps of SGD on the synthetic set should
end where the expert is some epochs later. Images, label logits and the student's step size follow the gradient of that
distance; which epochs are matched depends on the number of images per class: few images learn early, easy epochs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddlnl import augment, loop, training
from ddlnl.datm_initial import Initial
from ddlnl.datm_settings import Settings
from ddlnl.generators import generator
from ddlnl.graphs import Captured
from ddlnl.matching import matching_gradient
from ddlnl.precision import require_direction
from ddlnl.trajectories import Trajectories

__all__ = ["Datm", "Draws", "Settings", "checkpoints", "distil", "matching_gradient"]

_SMALLEST_STEP = 1e-6
_PATIENCE = 200  # iterations
_FILE = 10  # experts that the published code keeps in one file, and goes through before the next
_VARIABLES = ("images", "logits", "step_size")


@dataclass(frozen=True)
class Draws:
    """The random decisions of one iteration: minibatches (T, B) and one augmentation for each of them."""

    expert: int
    start: int
    minibatches: Tensor
    augmentations: list[augment.Augmentation]


class Datm:
    """One distillation: its three variables, their velocities, and how often the gate was closed."""

    def __init__(
        self,
        initial: Initial,
        settings: Settings,
        trajectories: Trajectories,
        network: nn.Module,
        seed: int,
        device: torch.device,
    ) -> None:
        self.settings, self.trajectories, self.network, self.seed, self.device = (
            settings,
            trajectories,
            network,
            seed,
            device,
        )
        self.images = initial.images.to(device)
        self.logits = initial.logits.to(device)
        self.step_size = torch.tensor(settings.step_size, device=device)
        self.velocities = {name: torch.zeros_like(getattr(self, name)) for name in _VARIABLES}
        self.losses = torch.full((settings.iterations,), torch.nan)
        self.steps = torch.full((settings.iterations,), torch.nan)
        self.clamped = 0
        self._gradients: dict[str, Callable] = {}  # by precision

    def draw(self, iteration: int) -> Draws:
        """Everything random in `iteration`, from generators named by (seed, iteration)."""
        settings, count = self.settings, len(self.images)
        source = generator(self.seed, "datm", iteration)
        start = int(torch.randint(settings.min_start, settings.start_end(iteration), (), generator=source))
        size = min(settings.batch, count)
        batches = []
        while len(batches) < settings.steps:
            batches += torch.randperm(count, generator=source)[: count // size * size].split(size)
        draws = [
            augment.draw(settings.strategy, size, self.images.shape[2:], source, mode="single")
            for _ in range(settings.steps)
        ]
        minibatches = torch.stack(batches[: settings.steps])
        return Draws(expert_of(iteration, self.trajectories.experts, self.seed), start, minibatches, draws)

    def iterate(self, iteration: int) -> Tensor:
        """One update in place; returns the loss. A loss above the threshold leaves everything as it is.

        Raises `training.NotFinite` naming the tensor that is not finite.
        """
        settings, draws = self.settings, self.draw(iteration)
        start, target = ends = self._ends(draws)
        loss, *gradients = self.gradient(draws, ends, settings.precision)
        where = f"iteration {iteration} of {settings.iterations} (expert {draws.expert}, epoch {draws.start})"
        loop.require_finite("DATM", where, start=start, target=target)
        if loss.isnan():  # a student that diverges to infinity is gated, as published
            loop.require_finite("DATM", where, loss=loss)
        self.losses[iteration], self.steps[iteration] = float(loss), float(self.step_size)
        if loss <= settings.threshold:
            loop.require_finite(
                "DATM", where, **{f"gradient of {n}": g for n, g in zip(_VARIABLES, gradients, strict=True)}
            )
            self._update(dict(zip(_VARIABLES, gradients, strict=True)), iteration)
            loop.require_finite("DATM", where, **{name: getattr(self, name) for name in _VARIABLES})
        self._require_progress(iteration)
        return loss

    def _ends(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """(P,) parameters of the expert where the student starts, and where it should end."""
        epochs = draws.start, draws.start + self.settings.target_epochs
        return tuple(self.trajectories.parameters(draws.expert, epoch).to(self.device) for epoch in epochs)

    def gradient(
        self, draws: Draws, ends: tuple[Tensor, Tensor], precision: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The loss of an iteration between two `ends` and its gradients in images, logits and step size."""
        augmentations = augment.stacked(draws.augmentations).to(self.device)
        if precision not in self._gradients:
            self._gradients[precision] = self._gradient_in(precision)
        return self._gradients[precision](
            *ends,
            self.images,
            self.logits,
            self.step_size,
            draws.minibatches.to(self.device),
            augmentations.table.view(*draws.minibatches.shape, -1),
            augmentations.codes,
        )

    def _gradient_in(self, precision: str) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
        """`matching_gradient` as a function of tensors alone, on a GPU captured as one CUDA graph."""

        def gradient(start, target, images, logits, step_size, minibatches, tables, codes):
            draws = [augment.Augmentation(*one) for one in zip(tables, codes, strict=True)]
            ends, student = (start, target), (images, logits, step_size, minibatches, draws)
            mode = self.settings.gradient
            return matching_gradient(self.network, *ends, *student, mode=mode, precision=precision)

        return Captured(gradient) if self.device.type == "cuda" else gradient

    def begin(self) -> None:
        """Refuse a precision that is too coarse."""
        if self.settings.precision != "float32":
            self.require_precision(0)

    def require_precision(self, iteration: int) -> None:
        """Raise `InputError` unless the gradient of `iteration` points where that in float32 does."""
        draws, chosen = self.draw(iteration), self.settings.precision
        ends = self._ends(draws)
        ours, exact = (self.gradient(draws, ends, precision) for precision in (chosen, "float32"))
        for at, name in ((1, "images"), (2, "labels")):
            require_direction(ours[at], exact[at], chosen, name)

    def _update(self, gradients: dict[str, Tensor], iteration: int) -> None:
        settings = self.settings
        rates = {"images": settings.lr_images, "logits": settings.lr_labels, "step_size": settings.lr_step}
        for name, gradient in gradients.items():
            momentum = settings.label_momentum if name == "logits" else settings.momentum
            self.velocities[name].mul_(momentum).add_(gradient)
            getattr(self, name).sub_(rates[name] * self.velocities[name])
        if self.step_size < _SMALLEST_STEP:
            warnings.warn(
                f"DATM's step size became {float(self.step_size):.3g} in iteration {iteration} and was set to "
                f"{_SMALLEST_STEP}; a smaller lr_step than {settings.lr_step} keeps it positive.",
                stacklevel=2,
            )
            self.step_size.fill_(_SMALLEST_STEP)
            self.clamped += 1

    def _require_progress(self, iteration: int) -> None:
        """A student that moves away from every target never lets anything change, its own step size included."""
        patience = min(_PATIENCE, self.settings.iterations)
        losses = self.losses[:patience]
        if iteration + 1 == patience and bool((losses > self.settings.threshold).all()):
            raise training.NoProgress(
                f"The loss was above the threshold {self.settings.threshold} in the first {patience} iterations "
                f"(median {float(losses.median()):.3f}), so DATM changed nothing; a smaller step_size than "
                f"{self.settings.step_size} is what usually helps."
            )

    def report(self, iteration: int) -> dict[str, float | list[float]]:
        """What a record says of the first `iteration` iterations: curves thinned to at most 50 points, and counts."""
        losses, every = self.losses[:iteration], max(1, iteration // 50)
        return {
            "loss": [round(float(one), 6) for one in losses[::every].clamp(max=1e30)],  # JSON has no infinity
            "step_size": [float(f"{one:.6g}") for one in self.steps[:iteration:every].tolist()],
            "gated": int((losses > self.settings.threshold).sum()),
            "clamped": self.clamped,
        }

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs."""
        named = {name: getattr(self, name) for name in (*_VARIABLES, "losses", "steps")}
        velocities = {f"velocity.{name}": velocity for name, velocity in self.velocities.items()}
        return named | velocities | {"clamped": torch.tensor(self.clamped)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        self.clamped = int(state["clamped"])
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def expert_of(iteration: int, experts: int, seed: int) -> int:
    """The expert of an iteration: every pass uses each once, ten after ten as the published code reads its files."""
    turn, place = divmod(iteration, experts)
    source = generator(seed, "expert order", turn)
    files = torch.arange(experts).split(_FILE)
    order = [files[i][torch.randperm(len(files[i]), generator=source)] for i in _shuffled(len(files), source)]
    return int(torch.cat(order)[place])


def _shuffled(count: int, source: torch.Generator) -> list[int]:
    return torch.randperm(count, generator=source).tolist()


def checkpoints(settings: Settings) -> list[int]:
    """The iterations before which `distil` yields the set, ascending: always the first and the last."""
    return loop.checkpoints(settings.iterations, (0.0, *settings.evaluate_at))


def distil(run: Datm, progress: training.Progress | None = None) -> Iterator[int]:
    """Yield the iteration at every checkpoint of `run`, whose variables are then those before that iteration.

    A run that resumes yields the checkpoints that are still to come. Raises `training.NotFinite`, `training.NoProgress`
    where the gate was never open, and `InputError` where the chosen precision is too coarse.
    """
    return loop.follow(run, checkpoints(run.settings), progress)
