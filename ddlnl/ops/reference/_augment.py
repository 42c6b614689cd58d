"""Differentiable siamese augmentation as ordinary differentiable operations."""

from __future__ import annotations

import torch
from torch import Tensor

from ddlnl.errors import InputError

# Numbers of the operations in a program. 0 does nothing, so programs of different length fit in one tensor.
CODES = {"color": 1, "crop": 2, "cutout": 3, "flip": 4, "scale": 5, "rotate": 6}

# Columns of the parameter table of `augment`. A row of neutral values leaves an image as it is.
COLUMNS = (
    "flip",
    "offset",
    "saturation",
    "contrast",
    "row_shift",
    "column_shift",
    "scale_row",
    "scale_column",
    "cosine",
    "sine",
    "cut_row",
    "cut_column",
)
NEUTRAL = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, float("-inf"), float("-inf"))


def augment(images: Tensor, table: Tensor, codes: Tensor, index: Tensor | None = None) -> Tensor:
    """Differentiable siamese augmentation (arXiv 2102.08259): every image runs through a program of operations.

    Args:
        images: (N0, C, H, W) floating, already normalised or whitened (zero padding is then the mean image).
        table: (Q, 12) floating, a row of parameters per run of N / Q consecutive images, columns `COLUMNS`. One row
            serves the whole batch, N rows serve one image each.
        codes: (R, S) int32, a program of S operations (`CODES`, or 0 for nothing) per run of N / R consecutive
            images; (S,) is one program for all. An operation is applied to the result of the one before it.
        index: (N,) int64; the n-th result is made from images[index[n]]. None: N = N0, each image in its place.

    Returns: (N, C, H, W), affine in `images`; the parameters get no gradient.

    Raises `InputError` where ranks, dtypes, devices or row counts do not fit, or a code is unknown.

    With the channel mean m, the image mean M, the centre (p, q) = ((H - 1) / 2, (W - 1) / 2), zero outside x:
    color   k s x + k (1 - s) m + (1 - k) M + b for offset b, saturation s, contrast k: the three in this order
    crop    x[i + row_shift, j + column_shift], shifts rounded to whole pixels
    cutout  zero in a box of half the height and width about (cut_row, cut_column)
    flip    x[i, W - 1 - j] where flip > 0.5
    scale   x at (p + scale_row (i - p), q + scale_column (j - q)), bilinear
    rotate  x at (p + sine (j - q) + cosine (i - p), q + cosine (j - q) - sine (i - p)), bilinear
    """
    check(images, table, codes, index)
    chosen = images if index is None else images.index_select(0, index)
    compute = torch.promote_types(images.dtype, torch.float32)
    rows = _spread(table.detach().to(compute), len(chosen))
    parameter = {name: rows[:, column].view(-1, 1, 1) for column, name in enumerate(COLUMNS)}
    x = chosen.to(compute)
    for stage in _spread(torch.atleast_2d(codes), len(chosen)).unbind(1):
        for code in stage.unique().tolist():
            if code in _BY_CODE:
                x = torch.where((stage == code).view(-1, 1, 1, 1), _BY_CODE[code](x, parameter), x)
            elif code != 0:
                raise InputError(f"The operation code {code} is unknown; codes run from 0 to {len(CODES)}.")
    return x.to(images.dtype)


def check(images: Tensor, table: Tensor, codes: Tensor, index: Tensor | None) -> None:
    """Raise `InputError` for arguments of `augment` that do not fit together; reads no values."""
    if images.dim() != 4 or not images.is_floating_point():
        raise InputError(f"Images are a floating (N, C, H, W) tensor, not {_words(images)}.")
    if table.dim() != 2 or table.shape[1] != len(COLUMNS) or not table.is_floating_point():
        raise InputError(f"The parameter table is a floating (Q, {len(COLUMNS)}) tensor, not {_words(table)}.")
    if codes.dim() not in (1, 2) or codes.dtype != torch.int32:
        raise InputError(f"The codes are an int32 (S,) or (R, S) tensor, not {_words(codes)}.")
    if index is not None and (index.dim() != 1 or index.dtype != torch.int64):
        raise InputError(f"The index is an int64 (N,) tensor, not {_words(index)}.")
    for name, tensor in (("table", table), ("codes", codes), ("index", index)):
        if tensor is not None and tensor.device != images.device:
            raise InputError(f"The images are on {images.device}, but the {name} is on {tensor.device}.")
    count = len(images) if index is None else len(index)
    for name, rows in (("table", len(table)), ("codes", len(torch.atleast_2d(codes)))):
        if count % rows if rows else count:
            raise InputError(f"The {rows} rows of the {name} do not divide the {count} images into equal runs.")


def _words(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _spread(rows: Tensor, count: int) -> Tensor:
    """(count, ...) with every row repeated for its run of consecutive images."""
    return rows.repeat_interleave(count // len(rows), 0) if len(rows) else rows


def _color(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    offset, saturation, contrast = (p[name][..., None] for name in ("offset", "saturation", "contrast"))
    grey = x.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    return contrast * saturation * x + (contrast * (1 - saturation) * grey + ((1 - contrast) * mean + offset))


def _pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column numbers, shapes (1, H, 1) and (1, 1, W)."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device, dtype=x.dtype).view(1, -1, 1)
    columns = torch.arange(width, device=x.device, dtype=x.dtype).view(1, 1, -1)
    return rows, columns


def _take(x: Tensor, rows: Tensor, columns: Tensor, weights: Tensor | None = None) -> Tensor:
    """weights[n] x[n, :, rows[n], columns[n]] where inside, else 0, whatever the weight; rows and columns are whole."""
    n, channels, height, width = x.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = torch.where(inside, rows, 0).long() * width + torch.where(inside, columns, 0).long()
    taken = x.flatten(2).gather(2, flat.reshape(n, 1, -1).expand(-1, channels, -1)).view(n, channels, *flat.shape[1:])
    if weights is not None:
        taken = taken * torch.where(inside, weights, 0)[:, None]
    return torch.where(inside[:, None], taken, 0)


def _crop(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    rows, columns = _pixels(x)
    return _take(x, *torch.broadcast_tensors(rows + p["row_shift"].round(), columns + p["column_shift"].round()))


def _cutout(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    inside = torch.ones((), dtype=torch.bool, device=x.device)
    for pixels, side, name in zip(_pixels(x), x.shape[2:], ("cut_row", "cut_column"), strict=True):
        box = int(side * 0.5 + 0.5)
        first = p[name] - box // 2
        inside = inside & (pixels >= first) & (pixels < first + box)
    return torch.where(inside[:, None], 0, x)


def _flip(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    return torch.where(p["flip"][..., None] > 0.5, x.flip(3), x)


def _scale(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    rows, columns = _pixels(x)
    middle_row, middle_column = (x.shape[2] - 1) / 2, (x.shape[3] - 1) / 2
    v = p["scale_row"] * (rows - middle_row) + middle_row
    u = p["scale_column"] * (columns - middle_column) + middle_column
    return _bilinear(x, *torch.broadcast_tensors(v, u))


def _rotate(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    rows, columns = _pixels(x)
    middle_row, middle_column = (x.shape[2] - 1) / 2, (x.shape[3] - 1) / 2
    rows, columns = rows - middle_row, columns - middle_column
    v = p["sine"] * columns + p["cosine"] * rows + middle_row
    u = p["cosine"] * columns - p["sine"] * rows + middle_column
    return _bilinear(x, v, u)


def _bilinear(x: Tensor, v: Tensor, u: Tensor) -> Tensor:
    """Weighted sum of the four neighbours of (row v, column u), (N, H, W) each; one outside the image counts as 0."""
    top, left = v.floor(), u.floor()
    total = torch.zeros_like(x)
    for row, row_weight in ((top, 1 - (v - top)), (top + 1, v - top)):
        for column, weight in ((left, 1 - (u - left)), (left + 1, u - left)):
            total = total + _take(x, row, column, row_weight * weight)
    return total


_BY_CODE = {
    CODES[name]: apply
    for name, apply in {
        "color": _color,
        "crop": _crop,
        "cutout": _cutout,
        "flip": _flip,
        "scale": _scale,
        "rotate": _rotate,
    }.items()
}
