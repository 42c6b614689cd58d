"""RCIG's hyperparameters: what they are, and all 114 published sets of them as one table (`rcig_settings.csv`).

Two shipped configurations have misspelt or missing keys and cannot run; the table holds what is evidently meant. Where
no number of iterations is stated anywhere it is 10,000 (`iterations_from` "assumed"). What is the same in every
published set is a default of `Settings` and not in the table.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass, fields
from importlib import resources

from ddlnl.errors import InputError, nearest
from ddlnl.rcig_solve import SOLVERS

INITIALISATIONS = ("real", "clean", "noise")


@dataclass(frozen=True)
class Settings:
    """Hyperparameters of one distillation; the defaults are the published ones for CIFAR-10.

    l2_rate: the ridge divided by the number of distilled images (mirror images not counted). mirror: every image is
    also used mirrored. depth, width, activation: of the networks. inner_steps, hessian_steps: of the two solvers;
    inner_lr, hessian_lr: their learning rates, None: tuned at the start. solver: "adam", or "cg" for conjugate
    gradients, which has no learning rate.

    pool: networks; one is drawn per iteration and afterwards trained for 1 to pool_steps steps of Adam (pool_lr) on
    pool_rows random rows of the support (None: all), and begins anew once it is pool_age steps old.

    lr, lr_temperature: AdaBelief's, for images and labels and for the temperature; average: decay of the moving average
    that is the product; margin: whether the label margin is part of the loss. real_batch: real images per iteration.
    initialisation: "real" (images with that observed label), "clean" (with that clean label) or "noise".

    final_kernel: whether the last kernel takes part in the Hessian and the implicit gradient, as published, though the
    inner problem leaves it at zero. adapt_hessian: adapt hessian_lr in the run as inner_lr is.

    subsample: the published estimator, where only inner_rows, hessian_rows, direct_rows and implicit_rows random rows
    of the support and real_rows of the real batch have a gradient (None: all), averaged over `repeats` draws; otherwise
    gradients are exact and these numbers unused. published_quirks: that, and what else the published code does beside
    its formulas: base weights drift during the inner steps and the last kernel ascends, the inner Adam counts from the
    age of the network, pool batches leave out mirror images.

    rows_per_call: images per pass on a GPU (None: all). evaluate_at: checkpoints as fractions of `iterations`.
    """

    iterations: int = 10_000
    l2_rate: float = 5e-4
    mirror: bool = True
    depth: int = 3
    width: int = 128
    activation: str = "softplus"
    inner_steps: int = 20
    hessian_steps: int = 20
    inner_lr: float | None = None
    hessian_lr: float | None = None
    solver: str = "adam"
    pool: int = 30
    pool_age: int = 100
    pool_steps: int = 15
    pool_lr: float = 5e-5
    pool_rows: int | None = None
    lr: float = 3e-3
    lr_temperature: float = 3e-2
    average: float = 0.99
    learn_labels: bool = True
    margin: bool = True
    real_batch: int = 1024
    initialisation: str = "real"
    final_kernel: bool = True
    adapt_hessian: bool = False
    published_quirks: bool = False
    subsample: bool = False
    inner_rows: int | None = None
    hessian_rows: int | None = None
    direct_rows: int | None = None
    implicit_rows: int | None = None
    real_rows: int | None = None
    repeats: int = 1
    rows_per_call: int | None = None
    evaluate_at: tuple[float, ...] = tuple(step / 20 for step in range(21))

    def __post_init__(self) -> None:
        for name, allowed in (("solver", SOLVERS), ("initialisation", INITIALISATIONS)):
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(
                    f"RCIG's {name} {value!r} is unknown; it is one of {', '.join(allowed)}.{nearest(value, allowed)}"
                )
        if self.published_quirks and self.solver != "adam":
            raise InputError("The published behaviour is that of solver='adam'; conjugate gradients have none.")

    @property
    def subsampled(self) -> bool:
        """Whether the row numbers count."""
        return self.subsample or self.published_quirks


@functools.cache
def table() -> tuple[dict[str, str], ...]:
    """Every published set, as text: `source` is "config" (a shipped file), "rcig" (arXiv 2302.06755) or "study" (arXiv
    2411.11924); `status` tells what was shipped from what was inferred."""
    with resources.files(__package__).joinpath("rcig_settings.csv").open(encoding="utf-8") as lines:
        return tuple(csv.DictReader(lines))


def published(dataset: str, noise: str, ipc: int) -> Settings:
    """The settings of a cell: those of the noisy-label study, for a dataset outside it those of RCIG's authors.

    They are the same for every noise, so a noise that the study does not have gets them too. Raises `InputError` for a
    dataset or IPC without published settings.
    """
    row = _row(dataset, noise, ipc)
    values = {field.name: _parse(row[field.name]) for field in fields(Settings) if field.name in row}
    return Settings(**values | {"mirror": bool(values["mirror"])})


def published_augmentation(dataset: str, ipc: int) -> str:
    """The operations that augment the students' images, as `rcig_augment.draw` takes them."""
    return _row(dataset, "clean", ipc)["augmentation"]


def _row(dataset: str, noise: str, ipc: int) -> dict[str, str]:
    rows = [row for row in table() if row["dataset"] == dataset and row["source"] != "config"]
    if not rows:
        known = ", ".join(sorted({row["dataset"] for row in table()} - {""}))
        raise InputError(f"RCIG has no published settings for the dataset {dataset!r}; there are some for {known}.")
    sized = [row for row in rows if int(row["ipc"]) == ipc]
    if not sized:
        known = ", ".join(sorted({row["ipc"] for row in rows}, key=int))
        raise InputError(f"RCIG has no published settings for {dataset} at IPC {ipc}; allowed are {known}.")
    return min(sized, key=lambda row: (row["source"] != "study", row["noise"] != noise, row["noise"] != "clean"))


def _parse(text: str) -> str | float | int | None:
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
