"""Finished cells beside each other: images, labels, how students learn from them, and which classes they know.

A row of panels per cell, on common scales; what a record or the store does not have is said in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddlnl import labels
from ddlnl.claims import rates_of
from ddlnl.distilled import DistilledSet
from ddlnl.figures import COLOURS, GREY, STYLE, WIDTHS, name
from ddlnl.pictures import SHADES, SHOWN, SIGNED

HEADS = ("Images of the classes", "Labels by class", "Accuracy as trained (%)", "Accuracy by class (%)")
HEIGHT = 1.75  # inches of a row
ACROSS = 4  # pictures in a row
NAMED = 20  # classes up to which an axis names each of them


def cells(rows: pd.DataFrame, sets: Sequence[DistilledSet | None]) -> Figure:
    """A row of four panels for each cell: the first image of each of the first ten classes; the mean label of the
    images of each class (row) on a square root scale, or, for free labels, from minus to plus the largest; test
    accuracy at each test point, mean and range over students; test accuracy of each class, all students together.

    Args:
        rows: one or more records as `ddlnl.store.table` gives them, of one dataset, noise, profile and seed.
        sets: the distilled set of each record, None where there is none.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTHS["page"], 0.4 + HEIGHT * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), len(HEADS), squeeze=False)
        for panels, (_, row), small in zip(axes, rows.iterrows(), sets, strict=True):
            _images(panels[0], small)
            _labels(panels[1], small)
            _learning(panels[2], row)
            _classes(panels[3], row)
            panels[0].set_ylabel(heading(row))
        for ax, head in zip(axes[0], HEADS, strict=True):
            ax.set_title(head)
        for column in (2, 3):
            _share_scale(axes[:, column])
        figure.suptitle(condition(rows.iloc[0]), x=0.01, ha="left", fontsize=STYLE["axes.titlesize"])
    return figure


def condition(row: pd.Series) -> str:
    """What the cells have in common: dataset, noise with the share of wrong labels, profile and seed."""
    imbalance = "" if row["imbalance"] == "none" else f", {row['imbalance'].replace(':', ' ')}"
    wrong = "" if row["noise"] == "clean" else f" ({100 * row['realised_rate']:.1f} % wrong)"
    noise = row["noise"].replace(":", " ") + wrong
    return f"{name(row['dataset'])}{imbalance}, {noise}, profile {row['profile']}, seed {row['seed']}"


def heading(row: pd.Series) -> str:
    """The method of a record, how many images it has, and its accuracy after the last epoch."""
    size = f"IPC {row['ipc']}" if row["ipc"] else f"{row['train_images']} images"
    return f"{name(row['method'])}, {size}\n{100 * row['accuracy_last']:.1f} %"


def _say(ax: Axes, words: str) -> None:
    ax.text(0.5, 0.5, words, ha="center", va="center", transform=ax.transAxes)
    _bare(ax)


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _images(ax: Axes, small: DistilledSet | None) -> None:
    if small is None:
        _say(ax, "no small set\nin the store")
        return
    pictures = small.pictures()[:: small.ipc][:SHOWN].permute(0, 2, 3, 1).numpy()
    for place, picture in enumerate(pictures):
        top, left = 1.08 * (place // ACROSS), 1.08 * (place % ACROSS)
        extent = (left, left + 1, top + 1, top)
        ax.imshow(picture, extent=extent, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xlim=(0, 1.08 * ACROSS), ylim=(1.08 * -(-len(pictures) // ACROSS), 0), anchor="N")
    ax.grid(visible=False)
    _bare(ax)


def _labels(ax: Axes, small: DistilledSet | None) -> None:
    if small is None:
        _say(ax, "no small set\nin the store")
        return
    mass = labels.mass(small)
    if small.free_labels:
        largest = np.abs(mass).max()
        ax.imshow(mass, cmap=SIGNED, vmin=-largest, vmax=largest, interpolation="nearest")
    else:
        ax.imshow(np.sqrt(mass), cmap=SHADES, vmin=0, vmax=1, interpolation="nearest")
    ax.grid(visible=False)
    ax.set(xticks=[], yticks=[], xlabel="label", ylabel="class of the image", anchor="N")


def _learning(ax: Axes, row: pd.Series) -> None:
    curves = row["curves"][-1]
    students, shade = 100 * np.array(curves["test"]), COLOURS.get(row["method"], GREY)
    ax.plot(curves["epochs"], students.mean(0), color=shade, marker="o", markersize=3)
    ax.fill_between(curves["epochs"], students.min(0), students.max(0), color=shade, alpha=0.2, linewidth=0)
    ax.set(xlabel="epochs or steps", xlim=(0, 1.05 * curves["epochs"][-1]))


def _classes(ax: Axes, row: pd.Series) -> None:
    rates = rates_of(row)
    if rates is None:
        _say(ax, "not in the record")
        return
    ax.bar(range(len(rates)), 100 * np.diag(rates), color=COLOURS.get(row["method"], GREY))
    ax.set(xlabel="class", xticks=range(len(rates)) if len(rates) <= NAMED else range(0, len(rates), len(rates) // 5))


def _share_scale(axes: Sequence[Axes]) -> None:
    """The same limits for those panels of a column that hold numbers."""
    drawn = [ax for ax in axes if ax.has_data()]
    limits = [ax.get_ylim() for ax in drawn]
    for ax in drawn:
        ax.set(ylim=(max(0, min(low for low, _ in limits)), min(102, max(high for _, high in limits))))


def alt_text(rows: pd.DataFrame) -> str:
    """The figure of `cells` in words: accuracies of every cell, over all classes and in the best and the worst one."""
    return ". ".join([condition(rows.iloc[0]), *(_told(row) for _, row in rows.iterrows())]) + "."


def _told(row: pd.Series) -> str:
    told = f"{heading(row)} test accuracy after the last epoch".replace("\n", ": ")
    rates = rates_of(row)
    if rates is None:
        return told
    own = 100 * np.diag(rates)
    return f"{told}, from {own.min():.1f} % in class {own.argmin()} to {own.max():.1f} % in class {own.argmax()}"
