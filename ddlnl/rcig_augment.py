"""The augmentation of RCIG's students: for every image one operation, drawn anew in every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddlnl.errors import InputError, nearest

OPERATIONS = ("flip", "color", "crop", "rotate", "translate", "cutout")
ALL = "_".join(OPERATIONS)
STRENGTH, ANGLE, ZOOM = 0.25, math.radians(15), math.log(1.25)


@dataclass(frozen=True)
class Augmentation:
    """One draw for N images.

    flip, color, moved, cutout: indices of the images concerned. color_table (C, 3): offset, contrast, saturation. maps
    (M, 2, 3): from target to source coordinates, both from -1 to 1. corners (U, 2): of boxes of side `box`.
    """

    flip: Tensor
    color: Tensor
    color_table: Tensor
    moved: Tensor
    maps: Tensor
    cutout: Tensor
    corners: Tensor
    box: int

    def __call__(self, images: Tensor) -> Tensor:
        """Augmented images (N, C, H, W); bilinear sampling, borders repeated."""
        images = images.clone()
        to = images.device
        flip, color, moved, cutout = (one.to(to) for one in (self.flip, self.color, self.moved, self.cutout))
        images[flip] = images[flip].flip(-1)
        images[color] = _color(images[color], self.color_table.to(images))
        if len(moved):
            part = images[moved]
            grid = F.affine_grid(self.maps.to(images), list(part.shape), align_corners=True)
            images[moved] = F.grid_sample(part, grid, "bilinear", "border", align_corners=True)
        images[cutout] = images[cutout] * _outside(self.corners.to(to), self.box, images.shape[2:])
        return images


def _color(images: Tensor, table: Tensor) -> Tensor:
    offset, contrast, saturation = table.T[:, :, None, None, None]
    images = images + offset
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * contrast + mean
    grey = images.mean(1, keepdim=True)
    return (images - grey) * saturation + grey


def _outside(corners: Tensor, box: int, size: torch.Size) -> Tensor:
    """(U, 1, H, W): 0 inside the box, 1 outside."""
    inside = []
    for side, first in zip(size, corners.T, strict=True):
        place = torch.arange(side, device=corners.device)
        inside.append((place >= first[:, None]) & (place < first[:, None] + box))
    return ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])


def parse(strategy: str) -> tuple[str, ...]:
    """`"flip_crop"` as names; raises `InputError` on an unknown one and where there is none."""
    names = tuple(name for name in strategy.split("_") if name)
    for name in names or ("",):
        if name not in OPERATIONS:
            raise InputError(
                f"The augmentation {name!r} in {strategy!r} is unknown; the operations are {', '.join(OPERATIONS)}."
                + nearest(name, OPERATIONS)
            )
    return names


def draw(strategy: str, count: int, size: int, source: torch.Generator) -> Augmentation:
    """Draw one operation of `strategy` for each of `count` images of size x size pixels, and its parameters.

    flip: mirrored with probability 1/2. color: offset uniform within 0.25, contrast (about the image's mean) and
    saturation (about the pixel's) exp of such numbers. crop: zoom log-uniform from 0.8 to 1.25, window anywhere.
    rotate: within 15 degrees. translate: within an eighth of the side. cutout: a box of a quarter of the side, zero.
    """
    names = parse(strategy)
    choice = torch.randint(len(names), (count,), generator=source)
    numbers = 2 * torch.rand(count, 3, generator=source) - 1
    of = {
        name: (choice == names.index(name)).nonzero().flatten() if name in names else choice[:0] for name in OPERATIONS
    }
    box = size // 4
    scaled = STRENGTH * numbers[of["color"]]
    maps = {name: _MAPS[name](numbers[of[name]], size) for name in _MAPS}
    place = (numbers[of["cutout"], :2] + 1) / 2 * (size - box + 1)
    return Augmentation(
        flip=of["flip"][numbers[of["flip"], 0] < 0],
        color=of["color"],
        color_table=torch.stack([scaled[:, 0], scaled[:, 1].exp(), scaled[:, 2].exp()], 1),
        moved=torch.cat([of[name] for name in _MAPS]),
        maps=torch.cat(list(maps.values())),
        cutout=of["cutout"],
        corners=place.long().clamp(max=size - box),
        box=box,
    )


def _map(linear: list[Tensor], shift: Tensor, size: int) -> Tensor:
    """(M, 2, 3) from the four entries of the linear part (M,) and a shift in pixels (M, 2), both (x, y)."""
    matrix = torch.stack(linear, 1).unflatten(1, (2, 2))
    return torch.cat([matrix, shift[:, :, None] / ((size - 1) / 2)], 2)


def _crop(numbers: Tensor, size: int) -> Tensor:
    zoom = (ZOOM * numbers[:, 0]).exp()
    reach = (size * zoom - size).abs() / 2
    shift = numbers[:, 1:] * (reach / zoom)[:, None]
    zero = torch.zeros_like(zoom)
    return _map([1 / zoom, zero, zero, 1 / zoom], shift, size)


def _rotate(numbers: Tensor, size: int) -> Tensor:
    cosine, sine = (ANGLE * numbers[:, 0]).cos(), (ANGLE * numbers[:, 0]).sin()
    return _map([cosine, -sine, sine, cosine], torch.zeros(len(numbers), 2), size)


def _translate(numbers: Tensor, size: int) -> Tensor:
    one, zero = torch.ones(len(numbers)), torch.zeros(len(numbers))
    return _map([one, zero, zero, one], numbers[:, :2] * size / 8, size)


_MAPS = {"crop": _crop, "rotate": _rotate, "translate": _translate}
