"""Every figure's notebook runs as its reader would run it: papermill, then the page."""

from __future__ import annotations

import re
from pathlib import Path

import papermill
import pytest

from ddlnl import export, store

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SMALL = {"rates": [0.0, 0.8], "ipc": 10, "seeds": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("notebooks")


def run(place: Path, out: str, notebook: str = "fig2_symmetric", **given: object) -> Path:
    given = SMALL | {"store_dir": str(place / "store")} | given
    papermill.execute_notebook(NOTEBOOKS / f"{notebook}.ipynb", place / out, given, progress_bar=False)
    return place / out


@pytest.fixture(scope="module")
def first(place):
    return run(place, "first.ipynb")


def test_figure_2_runs_on_the_embedded_dataset_and_becomes_a_page(place, first):
    assert len(store.table(place / "store")) == 2 * (1 + 5)
    assert [line.split(", IPC")[0] for line in export.summary(first).splitlines()] == ["digits, dance", "digits, datm"]
    page = export.export(first, place / "first.html").read_text()
    assert 'alt="Test accuracy' in page
    assert "Does matching improve on its own initial set?" in page
    assert "Where the numbers come from" in page


def test_a_second_run_of_figure_2_reads_everything_from_the_store(place, first):
    before = {path: path.stat().st_mtime_ns for path in (place / "store" / "records").rglob("*.json")}
    second = run(place, "second.ipynb")
    assert {path: path.stat().st_mtime_ns for path in (place / "store" / "records").rglob("*.json")} == before
    assert export.summary(second) == export.summary(first)


def test_an_ipc_larger_than_a_class_stops_the_notebook_before_any_training(place):
    with pytest.raises(papermill.PapermillExecutionError, match="allowed is an IPC of at most"):
        run(place, "wrong.ipynb", store_dir=str(place / "untouched"), ipc=500)
    assert not (place / "untouched" / "records").exists()


def test_figure_3_shows_the_set_of_every_noise_before_and_after_and_what_its_labels_carry(place, first):
    out = run(place, "images.ipynb", "fig3_images", rates=[0.8], ipc=1)
    table = store.table(place / "store").query("method == 'datm' and ipc == 1")
    assert sorted(table["noise"]) == ["asymmetric:0.8", "clean", "symmetric:0.8"]
    page = export.export(out, place / "images.html").read_text()
    for alternative in (
        "seed 0, distilled images. Rows",
        "before the first update. Rows",
        "label mass on the own class",
    ):
        assert page.count("DATM, digits, IPC 1, seed 0") == 3
        assert alternative in page
    assert "absorbed, clean labels" in page
    assert "Where the numbers come from" in page


def test_the_notebook_on_own_images_finds_planted_errors_and_writes_its_files(place):
    given = {"ipc": 4, "device": "cpu", "out_dir": str(place / "denoised")}
    papermill.execute_notebook(NOTEBOOKS / "your_data.ipynb", place / "own.ipynb", given, progress_bar=False)
    page = export.export(place / "own.ipynb", place / "own.html").read_text()
    shares = re.search(
        r"known here: ([\d.]+)% of the suspected labels are wrong, and ([\d.]+)% of the wrong ones", page
    )
    precision, recall = map(float, shares.groups())
    assert precision > 85
    assert recall > 60
    assert 'alt="The 21 most doubtful of' in page
    assert {path.name for path in (place / "denoised").iterdir()} == {
        *("distilled.safetensors", "suspects.csv", "labels.csv", "transition.csv", "report.json")
    }
