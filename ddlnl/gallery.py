"""Every notebook as a page, and an index of them: `python -m ddlnl gallery OUT_DIR`, which `make gallery` calls."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
import nbformat
import papermill
from nbconvert.filters import markdown2html
from PIL import Image

from ddlnl import export
from ddlnl.claims import MIME
from ddlnl.errors import InputError
from ddlnl.files import replacing

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SMALL = {"ipc": 10, "rates": [0.0, 0.4, 0.8]}
SHELF: dict[str, dict] = {  # the order of the index, and what makes the demo profile small; other notebooks come last
    "fig1_overview": {},
    "fig2_symmetric": SMALL,
    "fig3_images": {"rates": [0.4]},
    "fig4_asymmetric": SMALL,
    "fig5_cifar_n": {"ipc": 10},
    "longtail": {},
    "controls": {},
    "your_data": {},
    "extensions": {},
}
RECORDED: dict[str, dict] = {  # the grids of the records in notebooks/results, where they are not those of the profile
    "fig4_asymmetric": {"ipc": 10},
    "longtail": {"ipc": 10, "imbalances": ["longtail:50"]},
}
LAST = "explore"  # shows what the others have left in the store
THUMBNAIL = 640  # pixels across


@dataclass(frozen=True)
class Card:
    """What the index says about a notebook: its title and claim, its first figure, its verdicts and its files."""

    stem: str
    title: str
    claim: str
    image: str | None
    alt: str
    sentences: tuple[tuple[str | None, str], ...]
    files: tuple[str, ...]


def build(
    out_dir: str | Path,
    notebooks: str | Path | None = None,
    store_dir: str | Path | None = None,
    workers: int = 1,
    given: Mapping[str, object] | None = None,
    records: str | Path | None = None,
) -> Path:
    """Run every notebook of a folder, finished cells from the store, and write pages, figures and the index.

    OUT_DIR gets <notebook>.html, the executed <notebook>.ipynb, figures/<notebook>-<number>.svg and .pdf, what a
    notebook writes in <notebook>/, and index.html, whose path is returned. A page needs no other file.

    Args:
        notebooks: a folder; None takes that of the checkout.
        store_dir: the folder of results; None takes the usual one.
        given: parameters in place of those of `SHELF`, for the notebooks that have them.
        records: a folder of records to draw from, computing nothing: all methods and all that the profile asks for, in
            the notebooks that need no more than records.

    Raises:
        InputError: there are no notebooks. What stops a notebook stops the gallery.
    """
    found = {path.stem: path for path in Path(notebooks or NOTEBOOKS).glob("*.ipynb")}
    if records is not None:
        found = {stem: path for stem, path in found.items() if "records" in papermill.inspect_notebook(path)}
    if not found:
        raise InputError(f"There are no notebooks in {notebooks or NOTEBOOKS}; name the folder that has them.")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    order = [stem for stem in SHELF if stem in found]
    order += sorted(set(found) - set(SHELF) - {LAST}) + [LAST] * (LAST in found)
    cards = []
    for stem in order:
        started = time.monotonic()
        usual = {"store_dir": store_dir, "workers": workers, "out_dir": out / stem}
        if records is None:
            usual |= SHELF.get(stem, {})
        else:
            usual |= {"records": Path(records).resolve(), "methods": None} | RECORDED.get(stem, {})
        _run(found[stem], out, usual | dict(given or {}))
        cards.append(_page(out, stem))
        print(f"{stem}: {time.monotonic() - started:.0f} s", flush=True)
    with replacing(out / "index.html") as file:
        file.write(_index(cards).encode())
    return out / "index.html"


def _run(path: Path, out: Path, wanted: Mapping[str, object]) -> None:
    """Execute a notebook with those of the parameters that it has."""
    known = papermill.inspect_notebook(path)
    given = {name: str(value) if isinstance(value, Path) else value for name, value in wanted.items() if name in known}
    papermill.execute_notebook(path, out / path.name, given, progress_bar=False)


def _page(out: Path, stem: str) -> Card:
    """The page and the figures of an executed notebook, and what the index says about it."""
    notebook = export.read(out / f"{stem}.ipynb")
    files = tuple(path.relative_to(out).as_posix() for path in export.figures(notebook, out / "figures" / stem))
    links = [("All figures", "index.html"), *((Path(file).name, file) for file in files)]
    export.export(out / f"{stem}.ipynb", out / f"{stem}.html", links)
    image, alt = _first_image(notebook)
    return Card(stem, export.title(notebook, stem), _claim(notebook), image, alt, _sentences(notebook), files)


def _claim(notebook: nbformat.NotebookNode) -> str:
    """The first paragraph after the title, where notebooks put their claim."""
    text = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    paragraphs = re.split(r"\n\s*\n", text)
    return next((part for part in paragraphs if part.strip() and not part.startswith("#")), "")


def _sentences(notebook: nbformat.NotebookNode) -> tuple[tuple[str | None, str], ...]:
    """(verdict, sentence) of every claim that the notebook shows; a measurement, as of speed, has no verdict."""
    found = []
    for told in (output.data[MIME] for output in export.outputs(notebook) if MIME in output.data):
        found += [(one["verdict"], one["text"]) for one in told.get("sentences", ())]
        if "sentences" not in told:
            found += [(None, line) for line in told["headline"].splitlines()]
    return tuple(found)


def _first_image(notebook: nbformat.NotebookNode) -> tuple[str | None, str]:
    """The first figure, made small, as a data address, and its alternative text."""
    for output in export.outputs(notebook):
        if "image/png" in output.data:
            with Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))) as image:
                small = image.convert("RGB")
                small.thumbnail((THUMBNAIL, THUMBNAIL))
            file = io.BytesIO()
            small.save(file, "png", optimize=True)
            alt = output.metadata.get("image/png", {}).get("alt", "")
            return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}", alt
    return None, ""


def _index(cards: list[Card]) -> str:
    folder = Path(__file__).parent / "template"
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True)
    environment.filters["markdown"] = markdown2html
    style = (folder / "style.css").read_text(encoding="utf-8")
    return environment.get_template("gallery.html.j2").render(cards=cards, style=style)
