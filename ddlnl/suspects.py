"""A denoised set to look at: suspected images with their labels, the distilled images, the estimated noise."""

from __future__ import annotations

import unicodedata

import matplotlib as mpl
import numpy as np
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddlnl import figures
from ddlnl.denoised import Report
from ddlnl.errors import InputError
from ddlnl.figures import STYLE, WIDTHS
from ddlnl.pictures import SHADES, SHOWN

ACROSS = 7  # suspected images in a row
LETTERS = 17  # of a line of text below one
ANNOTATED, NAMED = 12, 30  # classes up to which a matrix has numbers, and names
PLAIN = STYLE | {"axes.grid": False}


def suspected(report: Report, count: int = 3 * ACROSS) -> Figure:
    """The most doubtful training images, enlarged without smoothing, with their name, their given and their suggested
    label, and the probability that the given one is wrong. Raises `InputError` where no label is suspected."""
    rows = report.suspects.head(count)
    if rows.empty:
        raise InputError("There is nothing to show: no label is suspected.")
    images = report.images.train.images[rows["index"]]
    down = -(-len(rows) // ACROSS)
    size, text = WIDTHS["page"] / ACROSS, 0.42  # inches: a picture with its gap, and the lines below it
    height = down * (size + text)
    margins = {"left": 0.005, "right": 0.995, "top": 1 - 0.02 / height, "bottom": text / height}
    with mpl.rc_context(PLAIN):
        figure = Figure(figsize=(WIDTHS["page"], height))
        spaces = {"wspace": 0.08, "hspace": text / size}
        axes = figure.subplots(down, ACROSS, squeeze=False, gridspec_kw=margins | spaces).ravel()
        for ax, image, row in zip(axes, images, rows.itertuples(), strict=False):
            _picture(ax, image / 255)
            given, suggested = (_cut(name, LETTERS - 6) for name in (row.given, row.suggested))
            lines = f"{_cut(row.name)}\ngiven {given}\n{suggested}? {row.score:.0%}"
            ax.set_xlabel(lines, labelpad=3, linespacing=1.15)
        for ax in axes[len(rows) :]:
            ax.set_axis_off()
    return figure


def suspected_alt(report: Report, count: int = 3 * ACROSS) -> str:
    """The figure of `suspected` in words."""
    rows = report.suspects.head(count)
    listed = "; ".join(f"{row.name}: given {row.given}, suggested {row.suggested}" for row in rows.itertuples())
    return _readable(f"The {len(rows)} most doubtful of {len(report.suspects)} suspected training images. {listed}.")


def show(report: Report, count: int = 3 * ACROSS) -> None:
    """Display the figure of `suspected`, or a sentence where there is nothing to show."""
    if len(report.suspects):
        figures.show(suspected(report, count), suspected_alt(report, count))
    else:
        display(Markdown("No label is suspected."))


def distilled(report: Report) -> Figure:
    """The first distilled image of each of the first ten classes and half of the data, which stand below each other."""
    small = report.small
    names, pictures = small.class_names[:SHOWN], small.pictures().permute(0, 2, 3, 1).numpy()
    columns, first_half = len(names), -(-small.ipc // 2)
    size = min(0.75, WIDTHS["page"] / columns)
    with mpl.rc_context(PLAIN):
        figure = Figure(figsize=(size * columns, 2 * size + 0.3))
        grid = {"left": 0.005, "right": 0.995, "top": 1 - 0.25 / (2 * size + 0.3), "bottom": 0.01}
        axes = figure.subplots(2, columns, squeeze=False, gridspec_kw=grid | {"wspace": 0.08, "hspace": 0.08})
        for label, column in enumerate(axes.T):
            for ax, place in zip(column, (0, first_half), strict=True):
                _picture(ax, pictures[label * small.ipc + place])
            column[0].set_title(_cut(names[label], int(size / 0.06)), fontsize=7, pad=3)
    return figure


def distilled_alt(report: Report) -> str:
    """The figure of `distilled` in words."""
    names = ", ".join(report.small.class_names[:SHOWN])
    shown = f"Distilled images, {report.small.ipc} per class, of which one from each half is shown."
    return _readable(f"{shown} Classes: {names}.")


def transition(report: Report) -> Figure:
    """The estimated transition matrix; rows are true classes, columns given labels, shades on a square root scale."""
    matrix, names = report.found.transition, [_cut(name) for name in report.small.class_names]
    with mpl.rc_context(PLAIN):
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        ax = figure.subplots()
        drawn = ax.imshow(np.sqrt(matrix), cmap=SHADES, vmin=0, vmax=1)
        if len(names) <= NAMED:
            ax.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
            ax.set_yticks(range(len(names)), names)
        else:
            numbers = range(0, len(names), 10 if len(names) <= 100 else 50)
            ax.set(xticks=numbers, yticks=numbers)
        if len(names) <= ANNOTATED:
            for (row, column), share in np.ndenumerate(matrix):
                if round(100 * share):
                    shade = "white" if share > 0.15 else "black"
                    ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=shade)
        ax.set(xlabel="given label", ylabel="true class (estimated)")
        ticks = np.array([0, 0.02, 0.1, 0.25, 0.5, 1])
        bar = figure.colorbar(drawn, ax=ax, shrink=0.8, label="share of the true class, per cent")
        bar.set_ticks(np.sqrt(ticks), labels=[f"{100 * tick:g}" for tick in ticks])
    return figure


def transition_alt(report: Report) -> str:
    """The figure of `transition` in words: how often each class keeps its label, and where it goes most often."""
    matrix, names = report.found.transition, report.small.class_names
    others = matrix - np.diag(np.diag(matrix))
    rows = [
        f"{name}: {matrix[row, row]:.0%} right, most often called {names[others[row].argmax()]} "
        f"({others[row].max():.0%})"
        for row, name in enumerate(names)
    ]
    return _readable(f"Estimated transition matrix. {'; '.join(rows)}.")


def _picture(ax: Axes, image: np.ndarray) -> None:
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _readable(name: str) -> str:
    """The name of a file or class without what cannot be drawn: control characters, and bytes that are no UTF-8."""
    return "".join("\ufffd" if unicodedata.category(one) in ("Cc", "Cs") else one for one in name)


def _cut(text: str, letters: int = LETTERS) -> str:
    """The end of a text that is too long, since that is where file names differ."""
    text = _readable(text)
    return text if len(text) <= letters else f"…{text[1 - letters :]}"
