"""Tables to plots: distilled sets beside the full noisy set (arXiv 2411.11924, Figs 2, 4 and 5), and speed."""

from __future__ import annotations

import base64
import html
import io
from importlib import resources
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import stats

from ddlnl.claims import LEVEL, distillers, select
from ddlnl.controls import EARLY_STOPPED
from ddlnl.controls import METHODS as CONTROLS
from ddlnl.errors import InputError
from ddlnl.evaluation import RULES
from ddlnl.methods import CLEANED, WHOLE

VECTORS = "application/vnd.ddlnl.figure+json"  # of a notebook's output: SVG and PDF in base64
ABOUT = {"svg": ("Description", "Date"), "pdf": ("Subject", "CreationDate"), "png": ("Description", None)}
WIDTHS = {"column": 3.3, "page": 6.9}  # inches, as papers set them
SCREEN = 140  # CSS pixels per inch on a page; the image holds twice as many
NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny-ImageNet",
    "dance": "DANCE",
    "datm": "DATM",
    "rcig": "RCIG",
    "full": "full noisy set",
    "random": "random images",
    "random_soft": "random, soft labels",
    "predicted": "expert-agreed images",
    "gce": "GCE, all images",
    "elr": "ELR, all images",
    "coteaching": "Co-teaching, all images",
    "early_stopped": "full set, stopped early",
    "cleaned": "cleaned, all images left",
    "cleaned_dance": "cleaned, then DANCE",
}
INK, GREY = "#1a1a1a", "#767676"
# Controls are grey; seaborn's colour-blind palette is told apart under every colour vision.
COLOURS = {"full": INK} | dict(zip(("dance", "datm", "rcig"), sns.color_palette("colorblind").as_hex(), strict=False))
MARKERS = {"random": "v", "random_soft": "^", "predicted": "s"}  # distilled sets are circles
MARKERS |= dict.fromkeys((*WHOLE, EARLY_STOPPED), "D")
RATES = mpl.colors.LinearSegmentedColormap.from_list(
    "rates", [(0, "#000000"), (0.2, "#3b3fbf"), (0.4, "#b0399a"), (0.6, "#e0603a"), (0.8, "#dc9600"), (1, "#8a8a00")]
)
SOLID = {"markersize": 3.5, "capsize": 1.5, "elinewidth": 0.8}
DASHED = {"linestyle": "--", "linewidth": 0.9}
FAINT = {"linestyle": ":", "linewidth": 0.8, "markersize": 3.2, "markeredgewidth": 0, "alpha": 0.7}
HOLLOW = {"linestyle": "none", "markerfacecolor": "none", "markersize": 5.5, "markeredgewidth": 0.9}
TARGET = {"linestyle": "none", "marker": "|", "markersize": 9, "markeredgewidth": 1.6}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "figure.facecolor": "white",
    "pdf.fonttype": 42,
    "svg.hashsalt": "ddlnl",
    "text.parse_math": False,  # a "$" is a part of somebody's name
}


def colour(rate: float) -> tuple[float, float, float, float]:
    """The colour of a noise rate: darker is cleaner, told apart under every colour vision, the same in every figure."""
    return RATES(rate)


def name(word: str) -> str:
    """How a dataset or method is written in a figure."""
    return NAMES.get(word, word)


def anchors() -> pd.DataFrame:
    """Accuracies (fractions of 1) from the methods' papers: clean labels, checkpoint with the best test accuracy."""
    with resources.files(__package__).joinpath("published.csv").open(encoding="utf-8") as lines:
        return pd.read_csv(lines)


def points(table: pd.DataFrame, kind: str = "symmetric") -> pd.DataFrame:
    """What the figure draws: one row per dataset, method, IPC, noise rate and noise, averaged over seeds.

    Accuracies are per cent under each rule of choosing the checkpoint. `error` belongs to the last checkpoint: half the
    95 % t interval over seeds, or with one seed the standard deviation over its students; `error_of` says which.
    """
    groups = select(table, kind).groupby(["dataset", "method", "ipc", "rate", "noise"])
    averages = 100 * groups[[f"accuracy_{rule}" for rule in RULES]].mean()
    averages.columns = list(RULES)
    seeds, students = groups["seed"].count(), groups["students"].max()
    quantile = stats.t.ppf((1 + LEVEL) / 2, (seeds - 1).clip(lower=1))
    interval = quantile * groups[f"accuracy_{RULES[0]}"].std() / np.sqrt(seeds)
    deviation = groups[f"std_{RULES[0]}"].mean().where(students > 1)
    averages["error"] = 100 * interval.where(seeds > 1, deviation)
    averages["error_of"] = np.where(seeds > 1, "seeds", np.where(students > 1, "students", "nothing"))
    return averages.assign(seeds=seeds, students=students, seconds=groups["seconds"].sum()).reset_index()


def accuracy(
    table: pd.DataFrame, kind: str = "symmetric", published: pd.DataFrame | None = None, width: str | None = None
) -> Figure:
    """Figs 2, 4 and 5: test accuracy of distilled sets and of the full noisy set under one kind of label noise.

    With several IPCs there is a panel per dataset (row) and method (column): accuracy against IPC, a colour per noise
    rate, dashed lines for the full set, and at the right edge bars over the rules of choosing its checkpoint. With one
    IPC there is a panel per dataset: accuracy against noise rate, a line per method, a band over those rules. The rate
    of labels of people is the share that is wrong.

    Args:
        table: records as `ddlnl.store.table` gives them, accuracies as fractions of 1.
        kind: of the noise; clean labels always belong to it.
        published: printed accuracies to mark, as `anchors` gives them; None marks those, an empty table marks none.
        width: "column" (3.3 inches, panels below each other) or "page" (6.9 inches); None chooses by their number.

    Raises:
        InputError: an unknown width, or a table without distilled sets, of several profiles, or with repeated cells.
    """
    if width not in (None, *WIDTHS):
        raise InputError(f"The width {width!r} is unknown; it may be {' or '.join(WIDTHS)}.")
    data = points(table[~table["method"].isin(WHOLE[1:] + CLEANED)], kind)
    methods = distillers(data)
    if not methods:
        raise InputError(f"There is nothing to draw: the table holds no distilled set under {kind} noise.")
    facts = anchors() if published is None else published
    facts = facts[facts["dataset"].isin(data["dataset"]) & facts["method"].isin(data["method"])]
    many = data.loc[data["method"].isin(methods), "ipc"].nunique() > 1
    panels = [(dataset, method) for dataset in data["dataset"].unique() for method in (methods if many else [None])]
    width = width or ("column" if len(panels) == 1 else "page")
    columns = 1 if width == "column" else len(methods) if many else len(panels)
    with mpl.rc_context(STYLE):
        return _draw(data, facts, kind, panels, columns, WIDTHS[width])


def symmetric(table: pd.DataFrame, published: pd.DataFrame | None = None, width: str | None = None) -> Figure:
    """Fig 2: `accuracy` under symmetric label noise."""
    return accuracy(table, "symmetric", published, width)


def _draw(
    data: pd.DataFrame, facts: pd.DataFrame, kind: str, panels: list[tuple], columns: int, width: float
) -> Figure:
    """Panels in rows of `columns`; a panel (dataset, None) is drawn over noise rates, (dataset, method) over IPCs."""
    rows = len(panels) // columns
    figure = Figure(figsize=(width, 1.1 + 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey="row" if panels[0][1] else "none", squeeze=False)
    for ax, (dataset, method) in zip(axes.flat, panels, strict=True):
        here, known = data[data["dataset"] == dataset], facts[facts["dataset"] == dataset]
        if method:
            _against_ipc(ax, here, known, method)
        else:
            _against_rate(ax, here, known)
        low, high = ax.get_ylim()
        ax.set(ylim=(max(low, 0), min(high, 100)))
    for ax in axes[-1]:
        ipc = data["ipc"].max()
        ax.set_xlabel("Images per class (IPC)" if panels[0][1] else f"{rate_of(kind)} (IPC {ipc})")
    figure.supylabel("Test accuracy (%)", fontsize=STYLE["axes.labelsize"])
    _legends(figure, data, facts, rate_of(kind) if panels[0][1] else None)
    return figure


def rate_of(kind: str) -> str:
    """The name of the axis on which a kind of noise is placed."""
    return "Share of wrong labels" if kind == "human" else f"{kind.capitalize()} noise rate"


def _against_ipc(ax: Axes, data: pd.DataFrame, facts: pd.DataFrame, method: str) -> None:
    """A panel of the published figure: a colour per noise rate, IPCs evenly spaced, controls beside each IPC."""
    ipcs = sorted(data.loc[data["ipc"] > 0, "ipc"].unique())
    place = {0: -0.3} | {ipc: index for index, ipc in enumerate(ipcs)}
    for step, (rate, group) in enumerate(data.groupby("rate")):
        of = dict(iter(group.assign(x=group["ipc"].map(place)).groupby("method")))
        for full in of["full"].itertuples() if "full" in of else ():
            spread = [getattr(full, rule) for rule in RULES]
            ax.axhline(full.last, color=colour(rate), **DASHED)
            ax.vlines(len(ipcs) - 0.45 + 0.07 * step, min(spread), max(spread), colour(rate), alpha=0.45, linewidth=2.5)
        for aside, control in enumerate(CONTROLS, start=1):
            if control in of:
                x, look = of[control]["x"] + 0.1 * aside, FAINT | {"linestyle": "none", "color": colour(rate)}
                ax.plot(x, of[control]["last"], marker=MARKERS[control], **look)
        if method in of:
            these = of[method]
            ax.errorbar(these["x"], these["last"], these["error"], color=colour(rate), marker="o", **SOLID)
    for row in facts[facts["method"].isin([method, "full", *CONTROLS]) & facts["ipc"].isin(place)].itertuples():
        aside = 0.1 * (CONTROLS.index(row.method) + 1) if row.method in CONTROLS else 0
        _mark(ax, place[row.ipc] + aside, row, colour(row.rate))
    ax.set(title=f"{name(data['dataset'].iloc[0])}, {name(method)}", xlim=(-0.45, len(ipcs) - 0.05))
    ax.set_xticks(range(len(ipcs)), ipcs)


def _against_rate(ax: Axes, data: pd.DataFrame, facts: pd.DataFrame) -> None:
    """A panel for one IPC: a line per method over the noise rates, a band over the full set's selection rules."""
    beside = {method: 0.007 * step for step, method in enumerate(distillers(data), start=1)}  # so that error bars show
    for method, group in data.groupby("method"):
        x, shade, marker = group["rate"] + beside.get(method, 0), COLOURS.get(method, GREY), MARKERS.get(method, "o")
        if method in CONTROLS:
            ax.plot(x, group["last"], color=shade, marker=marker, **FAINT)
            continue
        ax.errorbar(x, group["last"], group["error"], color=shade, marker=marker, **SOLID | _dash(method))
        if method == "full":
            rules = group[list(RULES)]
            ax.fill_between(x, rules.min(axis=1), rules.max(axis=1), color=shade, alpha=0.1, linewidth=0)
    for row in facts[facts["ipc"].isin(data["ipc"])].itertuples():
        _mark(ax, row.rate, row, COLOURS.get(row.method, GREY))
    ax.set(title=name(data["dataset"].iloc[0]), xticks=sorted(data["rate"].unique()))


def _dash(method: str) -> dict:
    return DASHED if method == "full" else {}


def _mark(ax: Axes, x: float, fact: tuple, shade: object) -> None:
    """A hollow marker for a printed accuracy."""
    ax.plot([x], [100 * fact.accuracy], marker=MARKERS.get(fact.method, "o"), color=shade, **HOLLOW)


def _legends(figure: Figure, data: pd.DataFrame, facts: pd.DataFrame, rates_title: str | None) -> None:
    """What colours, lines and markers mean, outside of the panels; `rates_title` where colours are noise rates."""
    methods, over_ipc = [("distilled", INK)], rates_title is not None
    if not over_ipc:
        methods = [(f"{name(method)}, distilled", COLOURS.get(method, GREY)) for method in distillers(data)]
    handles = [Line2D([], [], color=shade, marker="o", markersize=3.5, label=label) for label, shade in methods]
    diamond = {} if over_ipc else {"marker": "D", "markersize": 3.5}
    handles.append(Line2D([], [], color=INK, label="full noisy set, last epoch", **DASHED, **diamond))
    handles.append(Patch(color=INK, alpha=0.15, linewidth=0, label="its other selection rules"))
    for control in CONTROLS:
        if control in set(data["method"]):
            handles.append(Line2D([], [], color=GREY, marker=MARKERS[control], label=name(control), **FAINT))
    if len(facts):
        handles.append(Line2D([], [], color=INK, marker="o", label="published, clean labels", **HOLLOW))
    note, columns = error_note(data), 2 if figure.get_figwidth() < 5 else 4
    figure.legend(handles=handles, title=note, loc="outside lower center", ncols=columns, columnspacing=1.2)
    if over_ipc:
        rates = data[["rate", "noise"]].drop_duplicates().sort_values("rate").itertuples(index=False)
        lines = [Line2D([], [], color=colour(rate), label=condition(rate, noise)) for rate, noise in rates]
        ncols = 2 if columns == 2 and "human" in " ".join(data["noise"]) else 6
        figure.legend(handles=lines, title=rates_title, loc="outside upper center", ncols=ncols, columnspacing=1.2)


def condition(rate: float, noise: str) -> str:
    """How one noise is written beside others of its kind: its rate, or the label set and the share that is wrong."""
    kind, _, value = noise.partition(":")
    return f"{value}, {rate:.2g}" if kind == "human" else value or noise


def error_note(data: pd.DataFrame) -> str:
    """What the error bars of `points` are, for a legend."""
    notes = []
    for unit, note in (("seeds", "95 % interval over {} seeds"), ("students", "std over {} students, one seed")):
        counts = data.loc[data["error_of"] == unit, unit] if unit in set(data["error_of"]) else []
        if len(counts):
            low, high = counts.min(), counts.max()
            notes.append(note.format(low if low == high else f"{low} to {high}"))
    return f"Error bars: {' or '.join(notes)}" if notes else "One student of one seed: spread not measured"


def alt_text(table: pd.DataFrame, kind: str = "symmetric") -> str:
    """The figure in words, for those who do not see it: what is drawn, and both ends of each pair of lines."""
    data = points(table, kind)
    by = rate_of(kind)
    sentences = [
        f"Test accuracy after the last epoch by {by[0].lower()}{by[1:]}, distilled set against full noisy set."
    ]
    for (dataset, method), group in data[data["method"].isin(distillers(data))].groupby(["dataset", "method"]):
        best = group.groupby("rate")["last"].max()
        full = data[(data["dataset"] == dataset) & (data["method"] == "full")].set_index("rate")["last"]
        ends = [
            f"{best[rate]:.1f} against {full.get(rate, np.nan):.1f} % at {rate:g}"
            for rate in dict.fromkeys((best.index[0], best.index[-1]))
        ]
        ipcs = ", ".join(map(str, sorted(group["ipc"].unique())))
        best_of = "best of IPC" if "," in ipcs else "IPC"
        sentences.append(f"{name(dataset)}, {name(method)} ({best_of} {ipcs}): {', '.join(ends)}.")
    return " ".join(sentences)


def speedups(table: pd.DataFrame) -> Figure:
    """How many times faster each row of `ddlnl.bench.run` is than its baseline: a dot, the range over repetitions and
    the target; the dot is hollow where the target is not reached."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTHS["page"], 0.9 + 0.2 * len(table)), layout="constrained")
        ax, shade = figure.subplots(), COLOURS["dance"]
        rows = table.assign(place=range(len(table)))
        ax.axvline(1, color=GREY, linewidth=0.8)
        ax.hlines(rows["place"], rows["low"], rows["high"], color=shade, linewidth=1.3)
        for filled, group in rows.groupby(rows["reached"] != "no"):
            ax.plot(group["ratio"], group["place"], "o", color=shade, markerfacecolor=shade if filled else "white")
        ax.plot(rows["target"], rows["place"], color=INK, **TARGET)
        ax.set(
            xscale="log", xlabel="Time of the eager composition / time of the operator", ylim=(len(rows) - 0.4, -0.6)
        )
        ax.set_yticks(rows["place"], rows["name"].str.replace("_", " "))
        ax.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x")
        dots = [("median and range over repetitions", shade), ("target not reached", "white")]
        handles = [Line2D([], [], color=shade, marker="o", markerfacecolor=fill, label=label) for label, fill in dots]
        handles.append(Line2D([], [], color=INK, label="target", **TARGET))
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        return figure


def speedups_alt(table: pd.DataFrame) -> str:
    """The figure of `speedups` in words: every ratio, and its target."""
    rows = [
        f"{row.name.replace('_', ' ')} {row.ratio:.1f}" + ("" if np.isnan(row.target) else f" (target {row.target:g})")
        for row in table.drop(columns="about").itertuples(index=False)
    ]
    return f"Times faster than the eager composition: {', '.join(rows)}."


def show(figure: Figure, alt: str) -> None:
    """Display a figure as an image that carries its alternative text, and beside it, for `ddlnl.export`, as vectors."""
    size = {"width": round(figure.get_figwidth() * SCREEN), "height": round(figure.get_figheight() * SCREEN)}
    drawn = {suffix: _encoded(figure, suffix, alt) for suffix in ABOUT}
    data = {"image/png": drawn.pop("png"), VECTORS: drawn, "text/plain": alt}
    display(data, metadata={"image/png": size | {"alt": alt}}, raw=True)


def as_html(figure: Figure, alt: str) -> str:
    """A figure as an `img` element with its alternative text, for where nothing can be displayed."""
    width = round(figure.get_figwidth() * SCREEN)
    source = f"data:image/png;base64,{_encoded(figure, 'png', alt)}"
    return f'<img src="{source}" alt="{html.escape(alt)}" width="{width}" style="max-width: 100%; height: auto">'


def _encoded(figure: Figure, suffix: str, alt: str) -> str:
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format=suffix, dpi=2 * SCREEN, metadata=_about(suffix, alt))
    return base64.b64encode(file.getvalue()).decode("ascii")


def _about(suffix: str, alt: str) -> dict:
    """What a file says about itself: the alternative text, and no date, so that it repeats byte for byte."""
    words, date = ABOUT[suffix]
    return {words: alt} | ({date: None} if date else {})


def save(figure: Figure, stem: str | Path, alt: str = "") -> list[Path]:
    """Write `stem`.svg, .pdf and .png (600 dots per inch); the files carry `alt` and no date, so they repeat."""
    with mpl.rc_context(STYLE):
        for suffix in ABOUT:
            figure.savefig(f"{stem}.{suffix}", dpi=600, metadata=_about(suffix, alt))
    return [Path(f"{stem}.{suffix}") for suffix in ABOUT]
