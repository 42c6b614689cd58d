"""Look through a store with widgets: choose a profile, dataset, noise and IPC, see the figure and its verdict."""

from __future__ import annotations

from dataclasses import dataclass

import ipywidgets
import pandas as pd
from IPython.display import Markdown, display

from ddlnl import claims, figures
from ddlnl.errors import InputError

CELL = ["profile", "dataset", "noise", "imbalance", "method", "ipc", "seed"]
ALL = "all"


@dataclass(frozen=True)
class Choice:
    """What to look at; ipc is a number of images per class or "all"."""

    profile: str
    dataset: str
    kind: str
    ipc: int | str = ALL


def newest(table: pd.DataFrame) -> pd.DataFrame:
    """Of records that describe the same cell (made with other settings, or from other files), the one made last."""
    return table.sort_values("finished", kind="stable").drop_duplicates(CELL, keep="last") if len(table) else table


def choices(table: pd.DataFrame) -> list[Choice]:
    """Every profile, dataset and kind of noise under which the table has a distilled set, most records first."""
    rows = table[table["method"].isin(claims.distillers(table)) & (table["imbalance"] == "none")]
    kinds = rows["noise"].str.split(":").str[0].replace("clean", "symmetric")
    counts = rows.assign(kind=kinds).groupby(["profile", "dataset", "kind"]).size().sort_values(ascending=False)
    return [Choice(*place) for place in counts.index]


def view(table: pd.DataFrame, choice: Choice) -> None:
    """Display the figure and the verdict of a choice, or one sentence where it has no records."""
    rows = table[(table["profile"] == choice.profile) & (table["dataset"] == choice.dataset)]
    if choice.ipc != ALL:
        rows = rows[rows["ipc"].isin([0, choice.ipc])]
    try:
        figure = figures.accuracy(rows, choice.kind)
    except InputError as error:
        display(Markdown(str(error)))
        return
    figures.show(figure, figures.alt_text(rows, choice.kind))
    claims.show(claims.versus(rows, choice.kind))


def first(table: pd.DataFrame) -> None:
    """Display the `view` of the choice with the most records, or a sentence where the store has none."""
    known = choices(table)
    if known:
        view(table, known[0])
    else:
        display(Markdown("The store has no distilled set yet; run another notebook first, for example fig2_symmetric."))


def panel(table: pd.DataFrame) -> ipywidgets.Widget:
    """A list to choose from for each field of `Choice`; what is chosen is shown below, as by `view`."""
    known = choices(table)
    options = {
        field: list(dict.fromkeys(getattr(one, field) for one in known)) for field in ("profile", "dataset", "kind")
    }
    options["ipc"] = [ALL, *sorted(int(ipc) for ipc in table["ipc"].unique() if ipc)]
    lists = {field: ipywidgets.Dropdown(options=values, description=field) for field, values in options.items()}
    shown = ipywidgets.interactive_output(lambda **chosen: view(table, Choice(**chosen)), lists)
    return ipywidgets.VBox([ipywidgets.HBox(list(lists.values())), shown])
