"""Every figure's notebook runs as its reader would run it: papermill, then the page."""

from __future__ import annotations

import re
from pathlib import Path

import lab
import papermill
import pytest
from browser import BROWSER, chromium, faults
from executed import execute

from ddlnl import cleaned, export, robust, store
from ddlnl.methods import CONTROLS

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SMALL = {"rates": [0.0, 0.8], "ipc": 10, "seeds": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("notebooks")


def run(place: Path, out: str, notebook: str = "fig2_symmetric", **given: object) -> Path:
    given = SMALL | {"store_dir": str(place / "store")} | given
    return execute(NOTEBOOKS / f"{notebook}.ipynb", place / out, **given)


@pytest.fixture(scope="module")
def first(place):
    return run(place, "first.ipynb")


def test_figure_2_runs_on_the_embedded_dataset_and_becomes_a_page(place, first):
    table = store.table(place / "store")
    assert len(table) == 2 * (1 + 5)
    assert table["peak_memory_mib"].between(100, 2048).all()
    assert [line.split(":")[0] for line in export.summary(first).splitlines()] == ["digits, dance", "digits, datm"]
    page = export.export(first, place / "first.html").read_text()
    assert 'alt="Test accuracy' in page
    assert "Does matching improve on its own initial set?" in page
    assert "Where the numbers come from" in page


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed, so no page is opened in a real browser")
def test_the_page_of_figure_2_is_whole_in_a_real_browser(place, first, tmp_path):
    page = export.export(first, place / "first.html")
    with chromium(tmp_path) as tab:
        assert faults(tab, page) == []


def test_a_second_run_of_figure_2_reads_everything_from_the_store(place, first):
    before = {path: path.stat().st_mtime_ns for path in (place / "store" / "records").rglob("*.json")}
    second = run(place, "second.ipynb")
    assert {path: path.stat().st_mtime_ns for path in (place / "store" / "records").rglob("*.json")} == before
    assert export.summary(second) == export.summary(first)


def test_figure_2_is_drawn_from_a_folder_of_records_without_data_or_a_store(place):
    given = {"profile": "laptop", "dataset": "cifar10", "records": str(NOTEBOOKS / "results"), "rates": None}
    given |= {"data_dir": str(place / "no data"), "store_dir": str(place / "no store"), "methods": ["rcig"]}
    out = run(place, "recorded.ipynb", **given)
    assert export.summary(out).startswith("cifar10, rcig")
    assert not (place / "no store").exists()


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
    assert "asymmetric 0.8: students absorbed" in export.summary(out)
    assert "Where the numbers come from" in page


@pytest.mark.parametrize(
    ("notebook", "given", "noises", "says"),
    [
        pytest.param(
            "fig4_asymmetric",
            {"rates": [0.8], "methods": ["dance"]},
            {"clean", "asymmetric:0.8", "symmetric:0.8"},
            [
                "by asymmetric noise rate",
                "than under symmetric noise with as many wrong labels",
                "beats the full noisy set under asymmetric 0.8 noise: (yes|no|not enough data)",
                "students absorbed|is not in the rec",
            ],
            id="fig4_asymmetric",
        ),
        pytest.param(
            "fig5_cifar_n",
            {"rates": [0.2], "methods": ["dance"]},
            {"clean", "instance:0.2"},
            ["instance-dependent, not labels of people", "by instance noise rate", "against the full noisy set under"],
            id="fig5_cifar_n",
        ),
        pytest.param(
            "fig1_overview",
            {"rates": [0.8], "methods": ["datm"]},
            {"clean", "asymmetric:0.8", "symmetric:0.8"},
            [
                "label mass on the own class",
                "absorbed, clean labels",
                "times faster",
                "distilling (pays|never pays)",
                "the strongest attack has an AUC of",
                "members against .* at 1.0% false alarms",
                "cells and 6 records computed from them",
                "too few others",
                "nearest released image",
            ],
            id="fig1_overview",
        ),
        pytest.param(
            "controls",
            {"methods": ["dance"]},
            {"clean", "symmetric:0.8"},
            ["under clean labels and under symmetric 0.8 noise", "Co-teaching, all images", "a ResNet-18 in place"]
            + [f"beats? {one}" for one in (*CONTROLS[1:], *robust.METHODS, *cleaned.methods_here())],
            id="controls",
        ),
        pytest.param(
            "longtail",
            {"rates": [0.0, 0.2], "ipc": 2, "methods": ["dance"]},
            {"clean", "symmetric:0.2"},
            [
                "by imbalance factor, clean labels, IPC 2",
                "by imbalance factor, symmetric 0.2 labels, IPC 2",
                "against the full noisy set imbalance makes rare classes lose",
                "against random imbalance makes rare classes lose",
            ],
            id="longtail",
        ),
    ],
)
def test_a_notebook_runs_on_the_embedded_dataset_and_its_page_says_what_it_found(
    place, first, notebook, given, noises, says
):
    out = run(place, f"{notebook}.ipynb", notebook, **given)
    assert noises <= set(store.table(place / "store")["noise"])
    page = export.export(out, out.with_suffix(".html")).read_text()
    for words in (*says, "Where the numbers come from"):
        assert re.search(words, page), words
    assert export.summary(out)


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("store", ["DANCE, IPC 10: .* test accuracy after the last epoch", "Lists to choose from are here"]),
        ("empty", ["run another notebook first"]),
    ],
)
def test_the_notebook_to_explore_shows_two_methods_of_a_store_or_says_what_to_run(place, first, folder, says):
    out = place / f"explore {folder}.ipynb"
    execute(NOTEBOOKS / "explore.ipynb", out, store_dir=str(place / folder))
    page = export.export(out, out.with_suffix(".html")).read_text()
    for words in says:
        assert re.search(words, page), words


CHOOSE = """(async () => {
  const picture = () => document.querySelector('.jupyter-widgets img').alt;
  const [list, before] = [[...document.querySelectorAll('.jupyter-widgets select')].at(-1), picture()];
  list.selectedIndex = [...list.options].findIndex(option => option.text === 'full');
  list.dispatchEvent(new Event('change', {bubbles: true}));
  for (let tries = 0; tries < 600 && picture() === before; tries++) await new Promise(done => setTimeout(done, 200));
  return [before, picture()];
})()"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed, so no notebook is opened in JupyterLab")
def test_in_jupyterlab_the_lists_of_the_notebook_to_explore_change_its_picture(place, first, tmp_path):
    execute(NOTEBOOKS / "explore.ipynb", tmp_path / "explore.ipynb", store_dir=str(place / "store"))
    with lab.jupyterlab(tmp_path) as address, chromium(tmp_path / ".profile") as tab:
        assert lab.faults("explore.ipynb", lab.run(tab, address, "explore.ipynb")) == []
        answer = tab.call("Runtime.evaluate", expression=CHOOSE, awaitPromise=True, returnByValue=True)
    before, after = answer["result"]["value"]
    assert "full noisy set" not in before
    assert "full noisy set" in after


def test_the_notebook_on_own_images_finds_planted_errors_and_writes_its_files(place):
    given = {"ipc": 4, "device": "cpu", "out_dir": str(place / "denoised")}
    execute(NOTEBOOKS / "your_data.ipynb", place / "own.ipynb", **given)
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
