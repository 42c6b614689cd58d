"""Figures of how accuracy falls: under noise, for every way of making a small set, and under imbalance, by class."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ddlnl.claims import rates_of, select
from ddlnl.controls import EARLY_STOPPED
from ddlnl.controls import METHODS as CONTROLS
from ddlnl.errors import InputError
from ddlnl.figures import (
    COLOURS,
    FAINT,
    GREY,
    MARKERS,
    STYLE,
    WIDTHS,
    colour,
    condition,
    error_note,
    name,
    points,
    rate_of,
)
from ddlnl.methods import METHODS, WHOLE

DOTS = {"markersize": 4.5, "elinewidth": 0.8, "linestyle": "none"}
SHIFT = 0.11  # of a row, between noise rates


def under_noise(table: pd.DataFrame, kind: str = "symmetric") -> Figure:
    """Test accuracy of every method under every rate of a noise: a row per method, a dot per rate, a panel per IPC.

    The grey line from the first to the last dot is what the noise costs; the last rows train on all images.

    Args:
        table: records as `ddlnl.store.table` gives them, of one dataset; accuracies after the last epoch.
        kind: of the noise; clean labels always belong to it.

    Raises:
        InputError: no small set in the table, several datasets or profiles, or repeated cells.
    """
    data = points(table, kind)
    sizes = _sizes(data)
    order = _order(data)
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        width = WIDTHS["page" if len(sizes) > 1 else "column"]
        figure = Figure(figsize=(width, 1.5 + 0.3 * len(order)), layout="constrained")
        axes = figure.subplots(1, len(sizes), sharex=True, sharey=True, squeeze=False)
        for ax, ipc in zip(axes.flat, sizes, strict=True):
            here = data[data["ipc"].isin([0, ipc])]
            _strip(ax, here, order)
            title = f"{name(here['dataset'].iloc[0])}, IPC {ipc}"
            ax.set(title=title, xlabel="Test accuracy (%)", ylim=(len(order) - 0.5, -0.5))
            ax.set_yticks(range(len(order)), [name(method) for method in order])
            ax.tick_params(axis="y", length=0)
        rates = data[["rate", "noise"]].drop_duplicates().sort_values("rate").itertuples(index=False)
        told = [(colour(rate), condition(rate, spec)) for rate, spec in rates]
        dots = [Line2D([], [], marker="o", linestyle="none", color=shade, label=label) for shade, label in told]
        ncols = 6 if len(sizes) > 1 else 2 if kind == "human" else 5
        title = f"{rate_of(kind)}\n{error_note(data)}"
        legend = figure.legend(handles=dots, title=title, loc="outside lower center", ncols=ncols)
        legend.get_title().set_multialignment("center")
    return figure


def _order(data: pd.DataFrame) -> list[str]:
    """The methods as figures list them: sets that were distilled, cleaned before or not, sets that were chosen, then
    all images."""
    others = (*CONTROLS, *WHOLE[1:], EARLY_STOPPED, "full")
    order = (*(one for one in METHODS if one not in others), *others)
    return [one for one in order if one in set(data["method"])]


def _sizes(data: pd.DataFrame) -> list[int]:
    sizes = sorted(data.loc[data["ipc"] > 0, "ipc"].unique())
    if not sizes or data["dataset"].nunique() > 1:
        raise InputError("There is nothing to draw: the table must hold small sets of one dataset.")
    return sizes


def _strip(ax: Axes, data: pd.DataFrame, order: list[str]) -> None:
    """Dots of one IPC, those of a rate a little below those of the rate before it."""
    steps = {rate: place for place, rate in enumerate(sorted(data["rate"].unique()))}
    middle = (len(steps) - 1) / 2
    for row, method in enumerate(order):
        mine = data[data["method"] == method].sort_values("rate")
        y = row + SHIFT * (mine["rate"].map(steps) - middle)
        ax.plot(mine["last"], y, color=GREY, linewidth=0.7, zorder=1)
        for here, place in zip(mine.itertuples(), y, strict=True):
            marker = MARKERS.get(method, "o")
            ax.errorbar(here.last, place, xerr=here.error, marker=marker, color=colour(here.rate), **DOTS)


def under_noise_alt(table: pd.DataFrame, kind: str = "symmetric") -> str:
    """The figure of `under_noise` in words: accuracy under the least and the most noise of every method."""
    data = points(table, kind).sort_values("rate")
    told = [
        f"{name(method)}{f' (IPC {ipc})' if ipc else ''} {rows['last'].iloc[0]:.1f} to {rows['last'].iloc[-1]:.1f} %"
        for (method, ipc), rows in data.groupby(["method", "ipc"], sort=False)
    ]
    ends = data["noise"].iloc[[0, -1]].str.replace(":", " ")
    return f"Test accuracy under {ends.iloc[0]} labels and under {ends.iloc[1]} noise: {', '.join(told)}."


def under_imbalance(table: pd.DataFrame, kind: str = "symmetric") -> Figure:
    """Accuracy under imbalance: a panel over the factors, and one per factor with the accuracy of every class.

    The largest IPC and the lowest noise rate of the table are drawn. Classes are in order of their number, which in
    this package is the order of their sizes, the largest first. Without `confusion` in the records the panels of the
    classes are left out.

    Args:
        table: records as `ddlnl.store.table` gives them, of one dataset; accuracies after the last epoch.
        kind: of the label noise; clean labels always belong to it.

    Raises:
        InputError: no small set in the table, several datasets or profiles, or repeated cells.
    """
    data = _under_imbalance(table, kind)
    order = _order(data)
    known = all(rates_of(row) is not None for _, row in data.iterrows())
    factors = sorted(data["factor"].unique())
    panels = [None, *(factors if known else [])]
    with mpl.rc_context(STYLE):
        width = WIDTHS["page" if len(panels) > 2 else "column"]
        rows = -(-len(panels) // 3)
        figure = Figure(figsize=(width, 0.6 + 2.1 * rows), layout="constrained")
        axes = figure.subplots(rows, min(len(panels), 3), squeeze=False).ravel()
        for ax, factor in zip(axes, panels, strict=False):
            _overall(ax, data, factors) if factor is None else _by_class(ax, data[data["factor"] == factor], factor)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        figure.supylabel("Test accuracy (%)", fontsize=STYLE["axes.labelsize"])
        lines = [Line2D([], [], **_look(method), label=name(method)) for method in order]
        figure.legend(handles=lines, loc="outside lower center", ncols=2 if width < 5 else 4)
    return figure


def _under_imbalance(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    rows = select(table, kind, imbalance=None)
    largest = _sizes(rows)[-1]
    rows = rows[rows["ipc"].isin([0, largest]) & (rows["rate"] == rows["rate"].min())]
    factor = pd.to_numeric(rows["imbalance"].str.partition(":")[2]).fillna(1)
    return rows.assign(factor=factor)


def _look(method: str) -> dict:
    look = {"color": COLOURS.get(method, GREY), "marker": MARKERS.get(method, "o"), "markersize": 3.5}
    return look | (FAINT if method in CONTROLS else {"linestyle": "--" if method == "full" else "-"})


def _overall(ax: Axes, data: pd.DataFrame, factors: list[float]) -> None:
    means = 100 * data.groupby(["method", "factor"])["accuracy_last"].mean()
    for method, line in means.groupby("method"):
        ax.plot([factors.index(factor) for _, factor in line.index], line, **_look(method))
    ax.set_xticks(range(len(factors)), [f"{factor:g}" for factor in factors])
    noise = data["noise"].iloc[0].replace(":", " ")
    ax.set(
        title=f"All classes ({noise}, IPC {data['ipc'].max()})",
        xlabel="Imbalance factor",
        xlim=(-0.3, len(factors) - 0.7),
    )


def _by_class(ax: Axes, data: pd.DataFrame, factor: float) -> None:
    for method, rows in data.groupby("method"):
        own = np.mean([np.diag(rates_of(row)) for _, row in rows.iterrows()], axis=0)
        ax.plot(100 * own, **_look(method))
    title = "Balanced" if factor == 1 else f"Imbalance factor {factor:g}"
    ax.set(title=title, xlabel="Class, the largest first", ylim=(0, 102))
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))


def under_imbalance_alt(table: pd.DataFrame, kind: str = "symmetric") -> str:
    """The figure of `under_imbalance` in words: accuracy of every method under each factor."""
    data = _under_imbalance(table, kind)
    means = 100 * data.groupby(["method", "factor"])["accuracy_last"].mean()
    told = [
        f"{name(method)} {', '.join(f'{value:.1f} % at {factor:g}' for (_, factor), value in line.items())}"
        for method, line in means.groupby("method", sort=False)
    ]
    condition = f"{data['noise'].iloc[0].replace(':', ' ')} labels, IPC {data['ipc'].max()}"
    return f"Test accuracy by imbalance factor, {condition}: {'; '.join(told)}."
