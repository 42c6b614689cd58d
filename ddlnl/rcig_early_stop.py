"""How far RCIG's early stop is from the optimum of its inner problem, as a table for a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from IPython.display import display

from ddlnl import archives, datasets, evaluation, preprocess
from ddlnl.profiles import depth_for
from ddlnl.rcig_exact import shortfall
from ddlnl.rcig_settings import Settings

WIDTH = 16  # of the networks: the exact solution costs its square, times the square of the number of images


def measure(
    ipcs: Sequence[int] = (1, 10, 50), data_dir: str | Path | None = None, device: str = "auto"
) -> pd.DataFrame:
    """`rcig_exact.shortfall` on CIFAR-10 where its archive is there, else on digits; nothing is downloaded.

    With the published settings, but for networks that begin with width 16 (128) and sets without mirror images. Adds
    the columns `dataset` and `width`.
    """
    name = "cifar10" if archives.find("cifar10", data_dir) else "digits"
    train = datasets.load(name, data_dir).train
    whitening = preprocess.fit(train.images, "zca-relative", name)
    settings = Settings(width=WIDTH, depth=depth_for(train.images.shape[1]), mirror=False)
    table = shortfall(train, whitening, ipcs, settings, device=evaluation.choose_device(device))
    return table.assign(dataset=name, width=WIDTH)


def show(table: pd.DataFrame) -> None:
    """Display a table of `measure` for reading, with a sentence on what it was measured on."""
    name, width = table["dataset"].iloc[0], table["width"].iloc[0]
    said = f"Measured on {name}, on the initial sets of one seed, with an untrained network of width {width}."
    if name != "cifar10":
        said += " There is no archive of CIFAR-10 here, on which the numbers would be others."
    columns = {"ipc": "IPC", "unknowns": "unknowns", "solver": "solver", "steps": "steps", "lr": "learning rate"}
    shares = {"left": "decrease left (%)", "distance": "distance (%)"}
    shown = table.assign(**{share: 100 * table[share] for share in shares}).rename(columns=columns | shares)
    shown = shown[[*columns.values(), *shares.values()]]
    formats = {"learning rate": "{:.1e}".format} | dict.fromkeys(shares.values(), "{:.1f}".format)
    text = f"{said}\n{shown.to_string(index=False, formatters=formats, na_rep='none')}"
    page = f"<p>{html.escape(said)}</p>{shown.to_html(index=False, border=0, formatters=formats, na_rep='none')}"
    display({"text/plain": text, "text/html": page}, raw=True)
