"""Plain PyTorch twins of the operators: the definition that every kernel is tested against.

Each twin is written from the formula with ordinary differentiable operations, so it has derivatives of any order in
reverse and forward mode, in any floating dtype, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Columns of the parameter table of `augment`. A row of neutral values leaves an image as it is.
COLUMNS = (
    "flip",
    "offset",
    "saturation",
    "contrast",
    "row_shift",
    "column_shift",
    "xx",
    "xy",
    "yx",
    "yy",
    "cut_row",
    "cut_column",
)
NEUTRAL = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, float("-inf"), float("-inf"))


def augment(images: Tensor, table: Tensor, operations: tuple[str, ...]) -> Tensor:
    """Differentiable siamese augmentation: flip, colour, one geometric operation and cutout, in this order.

    Args:
        images: (N, C, H, W) floating, already normalised or whitened (zero padding is then the mean image).
        table: (N, 12) or (1, 12) parameters, columns `COLUMNS`; one row serves the whole batch.
        operations: which of flip, color, crop, scale, rotate, cutout to carry out; the columns of others are not read.
            Crop excludes scale and rotate in one call.

    Returns: (N, C, H, W), affine in `images` for fixed `table`.

    Flip commutes with colour, so flip, shift and cutout share one gather; scale and rotate sample bilinearly with zeros
    outside, about the image centre (pixel coordinates; for square images this is `grid_sample` under both conventions).
    """
    size = images.shape[2:]
    table = table.to(images).expand(len(images), -1)
    parameter = {name: table[:, column].view(-1, 1, 1) for column, name in enumerate(COLUMNS)}
    if "color" in operations:
        images = _colour(images, parameter)
    if "scale" in operations or "rotate" in operations:
        images = _bilinear(images, parameter, flip="flip" in operations)
    elif "crop" in operations or "flip" in operations:
        images = _shifted(images, parameter, flip="flip" in operations, crop="crop" in operations)
    if "cutout" in operations:
        images = images * _outside_box(size, parameter)[:, None]
    return images


def _colour(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """Brightness, saturation, contrast fused: k s x + k (1 - s) m + (1 - k) M + b with channel mean m and mean M."""
    offset, saturation, contrast = (p[name][..., None] for name in ("offset", "saturation", "contrast"))
    grey = x.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    return contrast * saturation * x + (contrast * (1 - saturation) * grey + ((1 - contrast) * mean + offset))


def _pixels(size: torch.Size, like: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column numbers, shapes (1, H, 1) and (1, 1, W)."""
    height, width = size
    rows = torch.arange(height, device=like.device, dtype=like.dtype).view(1, -1, 1)
    columns = torch.arange(width, device=like.device, dtype=like.dtype).view(1, 1, -1)
    return rows, columns


def _mirrored(columns: Tensor, p: dict[str, Tensor], width: int) -> Tensor:
    return torch.where(p["flip"] > 0.5, width - 1 - columns, columns)


def _take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """images[n, :, rows[n], columns[n]] where inside, else 0; rows and columns hold whole numbers."""
    n, channels, height, width = images.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = rows.clamp(0, height - 1).long() * width + columns.clamp(0, width - 1).long()
    taken = images.flatten(2).gather(2, flat.reshape(n, 1, -1).expand(-1, channels, -1))
    return taken.view(n, channels, *flat.shape[1:]) * inside[:, None]


def _shifted(images: Tensor, p: dict[str, Tensor], flip: bool, crop: bool) -> Tensor:
    rows, columns = _pixels(images.shape[2:], p["flip"])
    if crop:
        rows, columns = rows + p["row_shift"], columns + p["column_shift"]
    if flip:
        columns = _mirrored(columns, p, images.shape[3])
    return _take(images, *torch.broadcast_tensors(rows.expand(len(images), -1, -1), columns))


def _bilinear(images: Tensor, p: dict[str, Tensor], flip: bool) -> Tensor:
    """The four neighbours of (row, column) = A applied about the centre; a neighbour outside the image counts as 0."""
    height, width = images.shape[2:]
    rows, columns = _pixels(images.shape[2:], p["flip"])
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    rows, columns = rows - middle_row, columns - middle_column
    v = p["yx"] * columns + p["yy"] * rows + middle_row
    u = p["xx"] * columns + p["xy"] * rows + middle_column
    top, left = v.floor(), u.floor()
    total = torch.zeros_like(images)
    for row, row_weight in ((top, 1 - (v - top)), (top + 1, v - top)):
        for column, weight in ((left, 1 - (u - left)), (left + 1, u - left)):
            source = _mirrored(column, p, width) if flip else column
            total = total + _take(images, row, source) * (row_weight * weight)[:, None]
    return total


def _outside_box(size: torch.Size, p: dict[str, Tensor]) -> Tensor:
    """(N, H, W) ones with a zero box of half the side; a centre near the border leaves part of the box outside."""
    rows, columns = _pixels(size, p["flip"])
    box = [int(side * 0.5 + 0.5) for side in size]
    first_row, first_column = p["cut_row"] - box[0] // 2, p["cut_column"] - box[1] // 2
    in_rows = (rows >= first_row) & (rows < first_row + box[0])
    in_columns = (columns >= first_column) & (columns < first_column + box[1])
    return (~(in_rows & in_columns)).to(p["flip"].dtype)


def class_mean_distance(
    real: Tensor, real_labels: Tensor, synthetic: Tensor, synthetic_labels: Tensor, num_classes: int
) -> Tensor:
    """Sum over classes of the squared distance of mean features (arXiv 2110.04181, equation 5).

    Args: real (R, D) and synthetic (S, D) features with int64 labels (R,), (S,) in mixed order. A class that is missing
    on either side counts as 0. Returns a scalar.
    """

    def means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        sums = features.new_zeros(num_classes, features.shape[1]).index_add(0, labels, features)
        counts = torch.bincount(labels, minlength=num_classes)
        return sums / counts.clamp(min=1)[:, None].to(sums), counts > 0

    real_means, real_present = means(real, real_labels)
    synthetic_means, synthetic_present = means(synthetic, synthetic_labels)
    distances = (synthetic_means - real_means).square().sum(1)
    return torch.where(real_present & synthetic_present, distances, 0).sum()
