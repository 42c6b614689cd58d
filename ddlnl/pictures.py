"""Distilled sets to look at: their images (arXiv 2411.11924, Fig 3), and matrices of what their labels say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ddlnl import labels
from ddlnl.errors import InputError, nearest
from ddlnl.figures import INK, STYLE, WIDTHS, name
from ddlnl.labels import Outcome

SHOWN = 10  # classes, unless others are asked for
LARGEST = 0.75  # inches a picture may be wide
CHARACTER = 0.056  # inches, at 7 points
CUT = 24  # characters of a class's name
MARGIN = 1.1  # inches for the names of the conditions
GAP = 0.06  # between pictures, as a share of their width
SHADES = sns.color_palette("mako_r", as_cmap=True)  # from light to dark, so told apart under every colour vision
SIGNED = sns.color_palette("vlag", as_cmap=True)  # blue below zero, red above: for labels that are no probabilities
RING = "#e8590c"
TICKS = (0, 0.02, 0.1, 0.25, 0.5, 1)
KEY = """label mass; T and Q T are what the noise alone gives: on images that show their class,
and on images drawn at random"""
SIGNED_KEY = """learned labels, free numbers; T and Q T, what the noise alone gives, less 1 / K, with
shades from -1 to 1"""
RING_KEY = "; a ring is where the noise puts a class most often"


def grid(outcomes: Sequence[Outcome], classes: Sequence[int | str] | None = None, initial: bool = False) -> Figure:
    """Fig 3: an image of every class (column) from the distilled set of every noise (row), enlarged without smoothing.

    Of several images per class the first is shown; an image in multi-formation is shown as it is stored. The figure
    says what it leaves out.

    Args:
        outcomes: of one dataset, method and IPC, a noise each, as `labels.first_seeds` groups them.
        classes: numbers or names of the columns; None takes the first ten.
        initial: show the sets before the first update; noises without such a set are left out.

    Raises:
        InputError: nothing to show, outcomes that do not belong together, or an unknown class.
    """
    rows = _rows(outcomes, initial)
    columns = _columns(rows[0][1].class_names, classes)
    names = [_cut(rows[0][1].class_names[label]) for label in columns]
    size = min(LARGEST, (WIDTHS["page"] - MARGIN) / len(columns))
    longest = CHARACTER * max(map(len, names))
    head = 0.3 + (longest if longest > size else 0.15)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(WIDTHS["page"], head + size * len(rows) + 0.05))
        ax = _canvas(figure, head, len(columns), len(rows), size)
        for row, (_, small) in enumerate(rows):
            pictures = small.pictures().permute(0, 2, 3, 1).numpy()
            for column, label in enumerate(columns):
                picture = pictures[label * small.ipc]
                extent = (column + GAP, column + 1 - GAP, row + 1 - GAP, row + GAP)
                ax.imshow(picture, extent=extent, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
        ax.set_xticks(np.arange(len(columns)) + 0.5, names, rotation=90 if longest > size else 0)
        ax.set_yticks(np.arange(len(rows)) + 0.5, [condition(one, "\n") for one, _ in rows])
        figure.suptitle(
            _title(rows, columns, initial), x=0.01, y=1 - 0.05 / figure.get_figheight(), ha="left", va="top"
        )
    return figure


def _canvas(figure: Figure, head: float, columns: int, rows: int, size: float) -> Axes:
    """Axes without lines whose unit is a square of `size` inches, below `head` inches, beside the margin."""
    width, height = figure.get_size_inches()
    box = (MARGIN / width, 1 - (head + rows * size) / height, columns * size / width, rows * size / height)
    ax = figure.add_axes(box)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    return ax


def _rows(outcomes: Sequence[Outcome], initial: bool) -> list[tuple]:
    rows = [(one, one.initial if initial else one.small) for one in outcomes]
    rows = [(one, small) for one, small in rows if small is not None]
    if not rows:
        what = "initial set is stored" if initial else "distilled set was given"
        raise InputError(f"There is nothing to show: no {what}.")
    kinds = {(one.cell.dataset, one.cell.method, one.cell.ipc) for one, _ in rows}
    if len(kinds) > 1 or len({one.cell.noise for one, _ in rows}) < len(rows):
        raise InputError("A figure shows one dataset, method and IPC, and one set of every noise; select them first.")
    return rows


def _columns(names: Sequence[str], classes: Sequence[int | str] | None) -> list[int]:
    if classes is None:
        return list(range(min(SHOWN, len(names))))
    for one in classes:
        if one not in names and one not in range(len(names)):
            raise InputError(
                f"The class {one!r} is unknown; it is a number below {len(names)} or a name such as "
                f"{names[0]!r}.{nearest(one, names)}"
            )
    return [names.index(one) if one in names else one for one in classes]


def _cut(text: str) -> str:
    return text if len(text) <= CUT else f"{text[: CUT - 1]}…"


def condition(one: Outcome, between: str = ", ") -> str:
    """A noise for reading, with the share of labels that it made wrong."""
    kind = one.cell.noise.replace(":", " ")
    return kind if kind == "clean" else f"{kind}{between}{100 * one.realised_rate:.1f} % wrong"


def _title(rows: list[tuple], columns: list[int], initial: bool) -> str:
    (one, small), classes = rows[0], len(rows[0][1].class_names)
    parts = [_subject(one), "before the first update" if initial else "distilled images"]
    if small.ipc > 1:
        parts.append(f"the first of {small.ipc} images per class")
    if len(columns) < classes:
        first = "the first " if columns == list(range(len(columns))) else ""
        parts.append(f"{first}{len(columns)} of {classes} classes")
    return ", ".join(parts)


def _subject(one: Outcome) -> str:
    return f"{name(one.cell.method)}, {name(Path(one.cell.dataset).stem)}, IPC {one.cell.ipc}, seed {one.cell.seed}"


def grid_alt(outcomes: Sequence[Outcome], classes: Sequence[int | str] | None = None, initial: bool = False) -> str:
    """The figure of `grid` in words: what its rows and columns are."""
    rows = _rows(outcomes, initial)
    columns = _columns(rows[0][1].class_names, classes)
    names = ", ".join(rows[0][1].class_names[label] for label in columns)
    conditions = "; ".join(condition(one) for one, _ in rows)
    return f"{_title(rows, columns, initial)}. Rows are label noises: {conditions}. Columns are classes: {names}."


def mass(outcomes: Sequence[Outcome]) -> Figure:
    """Label mass of distilled sets beside what label noise alone would give; see `ddlnl.labels` for the matrices.

    For every noise a matrix each of: the labels before the first update (where such sets are stored), the learned
    labels, T and Q T. A row is the class that an image stands for, a column a label; the shade is the mass on a square
    root scale, so that little mass shows. A ring is around where a noise with a structure puts each class.

    Free labels (RCIG's) are no mass: the shades are the numbers themselves, from minus to plus the largest of the
    figure, and T and Q T have 1 / K subtracted as the labels had at the start.

    Args:
        outcomes: of one dataset, method and IPC, a noise each, as `labels.first_seeds` groups them.

    Raises:
        InputError: nothing to show, or outcomes that do not belong together.
    """
    rows = _rows(outcomes, initial=False)
    blocks = [_matrices(one) for one, _ in rows]
    limit = _limit(rows, blocks)
    heads = [head for head in ("start", "learned", "T", "Q T") if any(head in block for block in blocks)]
    across = 2 if len(blocks) > 1 else 1
    wide, high = len(heads) * (1 + 2 * GAP) + 0.2, 1.35  # of a block, in matrices
    size = (WIDTHS["page"] - 0.1) / (2 * wide)
    down = -(-len(blocks) // across)
    tall = down * high + 0.02
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(WIDTHS["page"], 0.5 + tall * size + 0.45))
        width, height = figure.get_size_inches()
        ax = figure.add_axes((0.1 / width, 0.45 / height, 2 * wide * size / width, tall * size / height))
        for place, ((one, _), block) in enumerate(zip(rows, blocks, strict=True)):
            x, y = place // down * wide, place % down * high + 0.35
            ax.text(x + GAP, y - 0.05, condition(one), va="bottom")
            for step, head in enumerate(heads):
                left = x + step * (1 + 2 * GAP) + GAP
                if head in block:
                    shown = _shades(block[head], head, limit)
                    _matrix(ax, shown, left, y, _ringed(one) if head == "learned" else [], limit is not None)
        for column in range(across):
            for step, head in enumerate(heads):
                left = column * wide + step * (1 + 2 * GAP) + GAP
                ax.text(left + 0.5, 0.0, head, ha="center", va="bottom", weight="bold")
        ax.set(xlim=(0, 2 * wide), ylim=(tall, 0))
        ax.set_axis_off()
        _key(figure, limit, any(_ringed(one) for one, _ in rows))
        what = "label mass" if limit is None else "mean labels"
        title = f"{_subject(rows[0][0])}, {what} (rows: class of the image, columns: label)"
        figure.suptitle(title, x=0.01, y=1 - 0.05 / height, ha="left", va="top")
    return figure


def _matrices(one: Outcome) -> dict[str, np.ndarray]:
    found = {"learned": labels.mass(one.small), "T": one.transition, "Q T": one.random}
    return found if one.initial is None else {"start": labels.mass(one.initial)} | found


def _limit(rows: list[tuple], blocks: list[dict[str, np.ndarray]]) -> float | None:
    """The largest free label of the figure, None for probabilities."""
    if not rows[0][1].free_labels:
        return None
    return max(np.abs(block[head]).max() for block in blocks for head in ("start", "learned") if head in block)


def _shades(matrix: np.ndarray, head: str, limit: float | None) -> np.ndarray:
    """A matrix in the units of its colours: from 0 to 1 for mass, from -1 to 1 for free labels."""
    if limit is None:
        return np.sqrt(matrix)
    return matrix - 1 / len(matrix) if head in ("T", "Q T") else matrix / limit


def _ringed(one: Outcome) -> list[tuple[int, int]]:
    """The flips of a noise with a structure, (row, column) each, where cells are large enough for a ring."""
    return list(zip(*one.flips, strict=True)) if len(one.transition) <= 2 * SHOWN else []


def _matrix(ax: Axes, shades: np.ndarray, left: float, top: float, ringed: list[tuple], signed: bool) -> None:
    """One matrix in the unit square at (left, top), with rings around some of its cells."""
    extent = (left, left + 1, top + 1, top)
    colours = {"cmap": SIGNED, "vmin": -1} if signed else {"cmap": SHADES, "vmin": 0}
    ax.imshow(shades, extent=extent, vmax=1, interpolation="nearest", **colours)
    ax.add_patch(Rectangle((left, top), 1, 1, fill=False, edgecolor=INK, linewidth=0.4))
    cell = 1 / len(shades)
    for row, column in ringed:
        corner = (left + column * cell, top + row * cell)
        ax.add_patch(Rectangle(corner, cell, cell, fill=False, edgecolor=RING, linewidth=0.7))


def _key(figure: Figure, limit: float | None, rings: bool) -> None:
    """The shades and what they mean, at the bottom, and the rings where there are any."""
    width, height = figure.get_size_inches()
    ax = figure.add_axes((0.1 / width, 0.27 / height, 2.2 / width, 0.09 / height))
    shades = SHADES if limit is None else SIGNED
    ax.imshow(np.linspace(0, 1, 256)[None], extent=(0, 1, 0, 1), aspect="auto", cmap=shades, vmin=0, vmax=1)
    if limit is None:
        ax.set_xticks(np.sqrt(TICKS), [f"{tick:g}" for tick in TICKS])
    else:
        ax.set_xticks((0, 0.5, 1), [f"{tick:.2g}" for tick in (-limit, 0, limit)])
    ax.set_yticks([])
    text = (KEY if limit is None else SIGNED_KEY) + (RING_KEY if rings else "")
    figure.text(2.5 / width, 0.24 / height, text, va="center", linespacing=1.4)


def mass_alt(outcomes: Sequence[Outcome]) -> str:
    """The figure of `mass` in words: for every noise the mean mass on the own class, learned and by T; for free labels
    how often the own class has the largest one."""
    rows = _rows(outcomes, initial=False)
    subject = _subject(rows[0][0])
    if rows[0][1].free_labels:
        tops = labels.numbers([one for one, _ in rows])["top_learned"]
        own = [f"{condition(one)}: {100 * top:.0f} %" for (one, _), top in zip(rows, tops, strict=True)]
        return f"{subject}: images whose largest learned label is that of their class. {'; '.join(own)}."
    own = [
        f"{condition(one)}: {np.diag(labels.mass(one.small)).mean():.2f} learned, {np.diag(one.transition).mean():.2f} "
        "by the transition matrix"
        for one, _ in rows
    ]
    return f"{subject}: label mass on the own class, mean over classes. {'; '.join(own)}."
