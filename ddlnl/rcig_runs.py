"""RCIG's two published runs side by side: students trained with augmentation and without."""

from __future__ import annotations

import pandas as pd
from IPython.display import display


def runs(table: pd.DataFrame) -> pd.DataFrame:
    """One row per dataset, noise and IPC of RCIG's records: mean accuracies (%) after the last step over `seeds`.

    `augmented` is the run that the noisy-label study reports and all selection rules are about; `not_augmented` is the
    longer run without augmentation, which the record keeps in its notes.
    """
    rows = table[table["method"] == "rcig"]
    other = [notes["accuracy_without_augmentation"] for notes in rows["notes"]]
    columns = {"augmented": 100 * rows["accuracy_last"], "not_augmented": 100 * pd.Series(other, rows.index, float)}
    groups = rows.assign(**columns).groupby(["dataset", "noise", "ipc"], sort=False)
    return groups[list(columns)].mean().assign(seeds=groups["seed"].count()).reset_index()


def show(table: pd.DataFrame) -> None:
    """Display `runs`, or that the table has no record of RCIG."""
    found = runs(table)
    if found.empty:
        text = "RCIG was not among the methods of this run."
        display({"text/plain": text, "text/html": f"<p>{text}</p>"}, raw=True)
        return
    rounded = found.round(1)
    bundle = {"text/plain": rounded.to_string(index=False), "text/html": rounded.to_html(index=False, border=0)}
    display(bundle, raw=True)
