"""What leaves a notebook: where its numbers come from, a page to pass on, and the result as a line."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd
from IPython.display import Markdown
from nbconvert import HTMLExporter

from ddlnl.claims import MIME
from ddlnl.errors import InputError
from ddlnl.figures import VECTORS
from ddlnl.files import replacing
from ddlnl.store import Store

HASHES = ("data", "preprocessing", "noise")
OF_RECORDS = ("profile", "versions", "device", "threads", "seconds", "peak_memory_mib", "finished", "key")
OF_RECORDS += tuple(f"{kind}_hash" for kind in HASHES)


def provenance(tables: pd.DataFrame | Sequence[pd.DataFrame], store_dir: str | Path | None = None) -> Markdown:
    """Where the numbers of a notebook come from: versions, hashes, devices, time, dates and the store.

    tables: the records of cells (`store.table`, `study.run`), or a list of them and of what was computed from them
    (`membership.run`, `transfer.run`). Several rows of one record, which have the same `key`, count once.
    """
    tables = [tables] if isinstance(tables, pd.DataFrame) else list(tables)
    tables = [one.drop_duplicates("key") for one in tables if len(one)]
    if not tables:
        return Markdown(f"* **Records:** none\n* **Store:** `{Store(store_dir).root}`")
    table = pd.concat([one[[*OF_RECORDS]] for one in tables])
    later = "".join(f" and {len(one)} records computed from them" for one in tables[1:])
    versions = {f"{name} {version}" for row in table["versions"] for name, version in row.items()}
    hashes = {kind: sorted(table[f"{kind}_hash"].unique()) for kind in HASHES}
    machines = table.groupby(["device", "threads"]).groups
    hours, rest = divmod(round(table["seconds"].sum()), 3600)
    time = f"{hours} h {rest // 60} min {rest % 60} s, experts counted in every cell that uses them"
    facts = {
        "Records": f"{len(tables[0])} cells{later}, profile {', '.join(table['profile'].unique())}",
        "Versions": ", ".join(sorted(versions)),
        "Device": ", ".join(f"{device} (threads: {threads})" for device, threads in machines),
        "Time": time,
        "Memory": f"at most {table['peak_memory_mib'].max():.0f} MiB",
        "Finished": f"{table['finished'].min()} to {table['finished'].max()}",
        "Store": f"`{Store(store_dir).root}`",
    } | {f"Hash of {kind}": " ".join(f"`{one[:16]}`" for one in ones) for kind, ones in hashes.items()}
    return Markdown("\n".join(f"* **{fact}:** {text}" for fact, text in facts.items()))


def export(notebook_path: str | Path, html_path: str | Path, links: Sequence[tuple[str, str]] = ()) -> Path:
    """Write an executed notebook as one HTML file that needs nothing else: no scripts, no request, light and dark.

    Code is folded, figures keep their alternative text, messages on stderr are left out. The first heading of the
    notebook is the page's title; `links`, pairs of a name and an address, stand above it. Raises `InputError` where
    there is no notebook to read.
    """
    notebook = read(notebook_path)
    exporter = HTMLExporter(template_name="template", extra_template_basedirs=[str(Path(__file__).parent)])
    about = {"metadata": {"name": title(notebook, Path(notebook_path).stem)}, "links": list(links)}
    page, _ = exporter.from_notebook_node(notebook, about)
    with replacing(Path(html_path)) as file:
        file.write(page.encode())
    return Path(html_path)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """What the cells of an executed notebook display, in order; neither streams nor errors."""
    return [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]


def figures(notebook: nbformat.NotebookNode, stem: str | Path) -> list[Path]:
    """Write every figure that `ddlnl.figures.show` left in an executed notebook as `stem`-<number>.svg and .pdf."""
    paths = []
    drawings = (output.data[VECTORS] for output in outputs(notebook) if VECTORS in output.data)
    for number, drawn in enumerate(drawings, start=1):
        for suffix, content in sorted(drawn.items()):
            paths.append(Path(f"{stem}-{number}.{suffix}"))
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            with replacing(paths[-1]) as file:
                file.write(base64.b64decode(content))
    return paths


def summary(notebook_path: str | Path) -> str:
    """The result of an executed notebook, one line per dataset and method.

    Raises `InputError` where there is no notebook, or where it holds no result because it has not run to its claims.
    """
    for output in outputs(read(notebook_path)):
        if MIME in output.data:
            return output.data[MIME]["headline"]
    raise InputError(f"The notebook {notebook_path} holds no result; run it first, for example with papermill.")


def read(path: str | Path) -> nbformat.NotebookNode:
    """A notebook in today's format; raises `InputError` where the file is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise InputError(f"{path} cannot be read as a notebook ({error}); give the path of an .ipynb file.") from error


def title(notebook: nbformat.NotebookNode, otherwise: str) -> str:
    """The text of the first heading, without its marks."""
    for cell in notebook.cells:
        heading = re.search(r"^#+ +(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if heading:
            return heading.group(1).replace("*", "").replace("`", "")
    return otherwise
