"""DATM's hyperparameters: what they are, and all 136 published sets of them as one table (`datm_settings.csv`)."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass, fields, replace
from importlib import resources

from ddlnl import trajectories
from ddlnl.errors import InputError
from ddlnl.training import Protocol

CHOICES = {
    "initialisation": ("predicted", "real"),
    "gradient": ("exact", "tesla"),
    "precision": ("float32", "tf32", "bf16"),
}


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of one distillation; the defaults are the published ones for CIFAR-10 at IPC 10, clean.

    iterations: updates of images, label logits and student step size, each by SGD with its own learning rate
    (lr_images, lr_labels, lr_step) and momentum (momentum, labels label_momentum). step_size: the student's, at the
    start. steps: inner SGD steps of the student on mini-batches of `batch` images. target_epochs: how many epochs after
    the start the expert's parameters are the target.

    The start epoch is uniform from min_start to an excluded end: max_start, or, with `first_max_start`, an end that
    grows from there to max_start over `expansion` iterations. An iteration whose loss is above `threshold` changes
    nothing. initialisation: "predicted" (images that an expert predicts as their observed label, with the mean logits
    of the experts that do) or "real" (any, with the logits of one expert). gradient: "exact" or "tesla". strategy: DSA,
    one operation per mini-batch. evaluate_at: checkpoints as fractions of `iterations`.
    """

    iterations: int = 10_000
    lr_images: float = 100.0
    lr_labels: float = 2.0
    lr_step: float = 1e-5
    step_size: float = 0.01
    momentum: float = 0.5
    label_momentum: float = 0.9
    steps: int = 80
    target_epochs: int = 2
    batch: int = 100
    min_start: int = 0
    first_max_start: int | None = 10
    max_start: int = 20
    expansion: int | None = 1000
    threshold: float = 1.0
    initialisation: str = "predicted"
    gradient: str = "exact"
    precision: str = "float32"
    strategy: str = "color_crop_cutout_flip_scale_rotate"
    evaluate_at: tuple[float, ...] = (0.0, *(step / 20 for step in range(1, 21)))

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"The {name} {getattr(self, name)!r} is unknown; allowed are {' and '.join(allowed)}.")
        for name in ("iterations", "steps", "target_epochs", "batch", "step_size"):
            if not getattr(self, name) > 0:
                raise InputError(f"DATM's {name} is {getattr(self, name)!r}, and it must be above 0.")
        first = self.max_start if self.first_max_start is None else self.first_max_start
        if not 0 <= self.min_start < first <= self.max_start:
            raise InputError(
                f"The start epochs from {self.min_start} to {first} and {self.max_start} (excluded) make no window; it "
                "must begin at 0 or later and may only grow."
            )
        if (self.first_max_start is None) != (self.expansion is None):
            raise InputError("first_max_start and expansion belong together: either both or neither must be given.")
        if not all(0 <= part <= 1 for part in self.evaluate_at):
            raise InputError(f"evaluate_at is {self.evaluate_at}, and it must hold fractions from 0 to 1.")

    def start_end(self, iteration: int) -> int:
        """The end, excluded, of the window of start epochs in `iteration`."""
        first = self.first_max_start
        if first is None:
            return self.max_start
        return min(self.max_start, first + (self.max_start - first) * iteration // self.expansion)

    @property
    def window(self) -> range:
        """The expert epochs that an iteration can touch."""
        return range(self.min_start, self.max_start + self.target_epochs)


@dataclass(frozen=True)
class Plan:
    """How a profile runs DATM.

    experts: how the trajectories are made; student: how students are trained (at the step size that was learned, so the
    learning rate of the recipe counts for nothing). settings: (IPC, settings) pairs, of which a cell takes that of the
    largest IPC not above its own; None takes the published ones with `gradient`, for each noise or, where
    `per_condition` is False, for clean labels always.
    """

    experts: trajectories.ExpertRecipe
    student: Protocol
    settings: tuple[tuple[int, Settings], ...] | None = None
    per_condition: bool = True
    gradient: str = "exact"

    def settings_for(self, dataset: str, noise: str, ipc: int) -> Settings:
        """The settings of a cell; raises `InputError` where nothing is published for it."""
        if self.settings is None:
            return replace(published(dataset, noise, ipc, self.per_condition), gradient=self.gradient)
        return max(((size, one) for size, one in self.settings if size <= ipc), key=lambda pair: pair[0])[1]

    def kept_epochs(self, dataset: str) -> range:
        """The expert epochs that some cell of `dataset` can touch."""
        every = all_published(dataset) if self.settings is None else [one for _, one in self.settings]
        return range(min(one.window.start for one in every), max(one.window.stop for one in every))


@functools.cache
def table() -> tuple[dict[str, str], ...]:
    """Every published set, as text: `source` is "datm" (arXiv 2310.05773) or "study" (arXiv 2411.11924)."""
    with resources.files(__package__).joinpath("datm_settings.csv").open(encoding="utf-8") as lines:
        return tuple(csv.DictReader(lines))


def published(dataset: str, noise: str, ipc: int, per_condition: bool = True) -> Settings:
    """The settings that the noisy-label study published for a cell.

    A noise that it does not have, and every noise where `per_condition` is False, gets the clean settings of the same
    dataset and IPC: those under noise were chosen by people who knew the noise. Raises `InputError` for a dataset or
    IPC without published settings.
    """
    of_dataset = [row for row in table() if row["source"] == "study" and row["dataset"] == dataset]
    rows = {(row["noise"], int(row["ipc"])): row for row in of_dataset}
    if not rows:
        known = ", ".join(sorted({row["dataset"] for row in table()}))
        raise InputError(f"DATM has no published settings for the dataset {dataset!r}; there are some for {known}.")
    if ("clean", ipc) not in rows:
        known = ", ".join(str(size) for noise, size in rows if noise == "clean")
        raise InputError(f"DATM has no published settings for {dataset} at IPC {ipc}; allowed are {known}.")
    row = rows.get((noise, ipc)) if per_condition else None
    return _parse(row or rows["clean", ipc])


def all_published(dataset: str) -> list[Settings]:
    """Every published set of a dataset."""
    return [_parse(row) for row in table() if row["dataset"] == dataset]


def _parse(row: dict[str, str]) -> Settings:
    whole = ("iterations", "steps", "target_epochs", "batch", "min_start", "first_max_start", "max_start", "expansion")
    values = {field.name: row[field.name] for field in fields(Settings) if field.name in row}
    numbers = {
        name: text if name == "initialisation" else None if not text else int(text) if name in whole else float(text)
        for name, text in values.items()
    }
    points = int(row["points"])
    return Settings(**numbers, evaluate_at=tuple(point / points for point in range(points + 1)))
