"""Differentiable siamese augmentation (DSA, arXiv 2102.08259) as DANCE and DATM use it: draw parameters, call the
operator.

`draw` decides, `ops.augment` computes. Drawn parameters and programs are small tensors: one draw can be shared by real
and synthetic images (siamese), indexed by class, stacked for a stack of networks, or kept to repeat a step exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddlnl import ops
from ddlnl.errors import InputError, nearest
from ddlnl.ops.reference import CODES, COLUMNS, NEUTRAL

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
GEOMETRIC = ("crop", "scale", "rotate")
SCALE_RATIO, ROTATION, CROP_RATIO = 1.2, math.radians(15), 0.125


@dataclass(frozen=True)
class Augmentation:
    """Drawn parameters and programs: `table` (Q, 12) float32 and `codes` (S,) or (R, S) int32 of `ops.augment`."""

    table: Tensor
    codes: Tensor

    def __call__(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Augmented (N, C, H, W) images, those at `index` (N,) where it is given; differentiable in `images` only."""
        return ops.augment(images, self.table, self.codes, index)

    def to(self, device: torch.device) -> Augmentation:
        """The same draw on another device."""
        return Augmentation(self.table.to(device), self.codes.to(device))

    def rows(self, index: Tensor) -> Augmentation:
        """The same draw with row `index[n]` for image n, for example one row per class."""
        shared = self.codes.dim() == 1
        return Augmentation(self.table[index], self.codes if shared else self.codes.expand(len(self.table), -1)[index])


def stacked(draws: Sequence[Augmentation]) -> Augmentation:
    """R draws with as many operations each, one after another: draw r for the r-th of R equal runs of images."""
    return Augmentation(torch.cat([one.table for one in draws]), torch.stack([one.codes for one in draws]))


def program(*operations: str) -> Tensor:
    """The (S,) int32 codes that carry out these operations in this order."""
    return torch.tensor([CODES[operation] for operation in operations], dtype=torch.int32)


def parse(strategy: str) -> tuple[str, ...]:
    """`"color_crop_cutout"` as operation names in the order of the string; raises `InputError` on an unknown one."""
    names = tuple(name for name in strategy.split("_") if name)
    for name in names:
        if name not in OPERATIONS:
            raise InputError(
                f"Augmentation {name!r} in {strategy!r} is unknown; the operations are {', '.join(OPERATIONS)}."
                + nearest(name, OPERATIONS)
            )
    return names


def parameters(count: int = 1, **columns: float | Tensor) -> Tensor:
    """A (count, 12) parameter table: the neutral row with the given columns (see `ops.reference.COLUMNS`) replaced."""
    table = torch.tensor(NEUTRAL).repeat(count, 1)
    for name, value in columns.items():
        table[:, COLUMNS.index(name)] = torch.as_tensor(value, dtype=table.dtype)
    return table


def draw(
    strategy: str, count: int, size: tuple[int, int], generator: torch.Generator, mode: str = "composed"
) -> Augmentation:
    """Draw parameters for `count` images (or `count` classes, one row each) of `size` (H, W).

    mode "composed": flip, color, one geometric operation chosen for the whole call, cutout, as DANCE composes them.
    mode "single": one operation of the strategy, chosen for the whole call, as DATM and the DC/DSA/DM lineage do.
    mode "all": every operation of the strategy in the order of `OPERATIONS`, the other mode of that lineage.
    Raises `InputError` on another mode or an unknown operation.
    """
    operations = _choose(parse(strategy), generator, mode)
    table = parameters(count)

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (count,), generator=generator).float()

    for operation in operations:
        for name, value in _DRAWS[operation](size, uniform, whole).items():
            table[:, COLUMNS.index(name)] = value
    return Augmentation(table, program(*operations))


def _choose(names: tuple[str, ...], generator: torch.Generator, mode: str) -> tuple[str, ...]:
    if mode not in ("composed", "single", "all"):
        raise InputError(f"Augmentation mode {mode!r} is unknown; the modes are composed, single and all.")
    if mode == "all":
        return tuple(name for name in OPERATIONS if name in names)
    if not names:
        return ()

    def one(of: tuple[str, ...]) -> str:
        return of[int(torch.randint(len(of), (), generator=generator))]

    if mode == "single":
        return (one(names),)
    geometric = tuple(name for name in names if name in GEOMETRIC)
    chosen = one(geometric) if geometric else None
    return tuple(name for name in ("flip", "color", chosen, "cutout") if name and (name in names))


def _color(size, uniform, whole):
    return {"offset": uniform() - 0.5, "saturation": 2 * uniform(), "contrast": uniform() + 0.5}


def _flip(size, uniform, whole):
    return {"flip": (uniform() < 0.5).float()}


def _crop(size, uniform, whole):
    reach = [int(side * CROP_RATIO + 0.5) for side in size]
    return {"row_shift": whole(-reach[0], reach[0]), "column_shift": whole(-reach[1], reach[1])}


def _cutout(size, uniform, whole):
    # An even box may be centred on any of H + 1 edges, an odd one on any of H pixels.
    box = [int(side * 0.5 + 0.5) for side in size]
    last = [side - b % 2 for side, b in zip(size, box, strict=True)]
    return {"cut_row": whole(0, last[0]), "cut_column": whole(0, last[1])}


def _scale(size, uniform, whole):
    low = 1 / SCALE_RATIO
    return {name: low + (SCALE_RATIO - low) * uniform() for name in ("scale_column", "scale_row")}


def _rotate(size, uniform, whole):
    angle = (2 * uniform() - 1) * ROTATION
    return {"cosine": angle.cos(), "sine": angle.sin()}


_DRAWS = {"color": _color, "flip": _flip, "crop": _crop, "cutout": _cutout, "scale": _scale, "rotate": _rotate}


def cutmix(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """CutMix with Beta(1, 1) (arXiv 1905.04899): a box of every image is replaced by that of another image of the
    batch.

    Args: images (B, C, H, W); targets (B, K) float class probabilities. Returns both, mixed; the label weight is the
    exact area that was kept, so cross-entropy against the mixed targets is the weighted sum of the two losses.
    """
    height, width = images.shape[2:]
    side = math.sqrt(1 - float(torch.rand((), generator=generator)))  # Beta(1, 1) is uniform
    order = torch.randperm(len(images), generator=generator).to(images.device)
    spans = []
    for length in (height, width):
        half = int(length * side) // 2
        centre = int(torch.randint(length, (), generator=generator))
        spans.append(slice(max(centre - half, 0), min(centre + half, length)))
    images = images.clone()
    images[:, :, spans[0], spans[1]] = images[order][:, :, spans[0], spans[1]]
    area = (spans[0].stop - spans[0].start) * (spans[1].stop - spans[1].start)
    kept = 1 - area / (height * width)
    return images, kept * targets + (1 - kept) * targets[order]
