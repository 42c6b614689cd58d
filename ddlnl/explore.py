"""Look through a store with widgets: choose data, noise, images per class and two methods, see their cells together."""

from __future__ import annotations

import html
from dataclasses import dataclass, fields
from pathlib import Path

import ipywidgets
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from ddlnl import claims, compared, figures, stored_sets
from ddlnl.distilled import DistilledSet
from ddlnl.methods import WHOLE
from ddlnl.store import Store

CELL = ["profile", "dataset", "noise", "imbalance", "method", "ipc", "seed"]
NOTHING = "The store has no distilled set yet; run another notebook first, for example fig2_symmetric."


@dataclass(frozen=True)
class Choice:
    """What to look at: `method` beside the method `beside`, of the same profile, dataset, noise and imbalance; `ipc`
    is that of both, where they have one. Of several seeds that both have the first is shown."""

    profile: str
    dataset: str
    noise: str
    imbalance: str
    ipc: int
    method: str
    beside: str


def newest(table: pd.DataFrame) -> pd.DataFrame:
    """Of records that describe the same cell (made with other settings, or from other files), the one made last."""
    return table.sort_values("finished", kind="stable").drop_duplicates(CELL, keep="last") if len(table) else table


def first(table: pd.DataFrame) -> Choice | None:
    """The condition with the most methods, and of those the noisiest, its first distiller beside the next method; None
    where there is no distilled set with anything beside it."""
    found = []
    for place, rows in table[table["ipc"] > 0].groupby(["profile", "dataset", "noise", "imbalance", "ipc"]):
        methods = claims.distillers(rows)
        others = [one for one in (*methods[1:], *rows["method"].unique()) if one not in methods[:1]]
        if methods and others:
            size = rows["method"].nunique(), rows["realised_rate"].max(), place[-1]
            found.append((size, Choice(*place[:-1], int(place[-1]), methods[0], others[0])))
    return max(found, key=lambda one: one[0])[1] if found else None


def view(table: pd.DataFrame, choice: Choice, store_dir: str | Path | None = None) -> None:
    """Display the cells of a choice beside each other, or say in one sentence which has no record."""
    found = _cells(table, choice)
    if isinstance(found, str):
        display(Markdown(found))
    else:
        figures.show(_drawn(found, store_dir), compared.alt_text(found))


def _cells(table: pd.DataFrame, choice: Choice) -> pd.DataFrame | str:
    """The records of a choice, a row per method, of the first seed that all have; or the sentence that says which is
    missing."""
    condition = f"{choice.profile}, {choice.dataset}, {choice.noise}, imbalance {choice.imbalance}"
    found = []
    for method in dict.fromkeys((choice.method, choice.beside)):
        place = {one.name: getattr(choice, one.name) for one in fields(Choice)[:4]} | {"method": method}
        place |= {"ipc": 0 if method in WHOLE else choice.ipc}
        found.append(table[(table[list(place)] == list(place.values())).all(axis=1)])
        if found[-1].empty:
            return f"There is no record of {figures.name(method)} for IPC {choice.ipc}, {condition}."
    seeds = set.intersection(*(set(here["seed"]) for here in found))
    if not seeds:
        names = f"{figures.name(choice.method)} and {figures.name(choice.beside)}"
        return f"No seed has records of both {names} for IPC {choice.ipc}, {condition}."
    return pd.concat([here[here["seed"] == min(seeds)].head(1) for here in found])


def _drawn(rows: pd.DataFrame, store_dir: str | Path | None) -> Figure:
    return compared.cells(rows, [_set_of(row, Store(store_dir)) for _, row in rows.iterrows()])


def _set_of(row: pd.Series, store: Store) -> DistilledSet | None:
    """The distilled set of a record, None where it made none or the store does not have it."""
    name = row["parents"].get("set")
    return stored_sets.read(store, name) if name else None


def panel(table: pd.DataFrame, store_dir: str | Path | None = None) -> ipywidgets.Widget:
    """A list to choose from for each field of `Choice`; what is chosen is shown below, as by `view`.

    The picture is an HTML widget. An output widget, which could display it, makes a notebook that runs without a
    browser hang now and then: nbclient answers it on the socket where it waits for the cell to end.
    """
    start = first(table)
    if start is None:
        return ipywidgets.Label(NOTHING)
    options = {one.name: _values(table, one.name) for one in fields(Choice)}
    lists = {
        field: ipywidgets.Dropdown(options=values, value=getattr(start, field), description=field)
        for field, values in options.items()
    }
    shown = ipywidgets.HTML()

    def show(_: object = None) -> None:
        found = _cells(table, Choice(**{field: one.value for field, one in lists.items()}))
        if isinstance(found, str):
            shown.value = f"<p>{html.escape(found)}</p>"
        else:
            shown.value = figures.as_html(_drawn(found, store_dir), compared.alt_text(found))

    for one in lists.values():
        one.observe(show, "value")
    show()
    return ipywidgets.VBox([ipywidgets.HBox(list(lists.values()), layout={"flex_flow": "row wrap"}), shown])


def _values(table: pd.DataFrame, field: str) -> list:
    """What a list offers: sizes in order, everything else as it comes in the table."""
    if field == "ipc":
        return sorted(int(ipc) for ipc in table["ipc"].unique() if ipc)
    return list(table["method" if field == "beside" else field].unique())
