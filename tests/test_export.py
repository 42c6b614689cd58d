"""Exported pages need nothing else, and a notebook's result is one line."""

from __future__ import annotations

import re

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from synthetic import records

from ddlnl import claims, export, figures
from ddlnl.errors import InputError


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """The path of a notebook with a figure, a verdict, a table and noise on both streams."""
    outputs = [
        new_output("stream", name="stderr", text="a progress bar"),
        new_output("stream", name="stdout", text="printed <b>text</b>"),
    ]

    def keep(data, metadata=None, raw=True):
        outputs.append(new_output("display_data", data=data, metadata=metadata or {}))

    monkeypatch.setattr(claims._show, "display", keep)
    monkeypatch.setattr(figures, "display", keep)
    table = records(ipcs=(50,))
    figures.show(figures.symmetric(table), 'says "less" < more')
    claims.show(claims.symmetric_noise(table))
    parameters = new_code_cell("ipc = 50", metadata={"tags": ["parameters"]})
    text = new_markdown_cell("# A *plain* `title`\n\nSee [the paper](https://arxiv.org/abs/2411.11924).")
    notebook = new_notebook(cells=[text, parameters, new_code_cell("figures.show(figure)", outputs=outputs)])
    nbformat.write(notebook, tmp_path / "run.ipynb")
    return tmp_path / "run.ipynb"


@pytest.fixture
def page(executed):
    return BeautifulSoup(export.export(executed, executed.with_suffix(".html")).read_text(), "html.parser")


def test_a_page_asks_the_network_for_nothing(page):
    policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not page.find_all(["script", "link", "iframe", "object"])
    assert all(tag["src"].startswith("data:image/png;base64,") for tag in page.find_all(src=True))
    assert not re.search(r"url\(|@import", page.style.string)


def test_a_page_keeps_the_alternative_text_and_the_size_of_a_figure(page):
    (image,) = page.find_all("img")
    assert image["alt"] == 'says "less" < more'
    assert int(image["width"]) == round(figures.WIDTHS["column"] * figures.SCREEN)
    assert image["style"] == f"min-width: {int(0.7 * int(image['width']))}px"  # words stay readable on a narrow screen


def test_a_page_is_titled_by_its_first_heading_and_says_its_language(page):
    assert page.title.string == "A plain title"
    assert page.html["lang"] == "en"
    assert page.find("meta", attrs={"name": "viewport"})


def test_a_page_folds_code_and_leaves_messages_on_stderr_out(page):
    folded = [details.summary.string for details in page.find_all("details", class_="code")]
    assert folded == ["Parameters", "Code"]
    assert not page.find_all("details", open=True)
    assert "figures.show" in page.find_all("details", class_="code")[1].get_text()
    assert "a progress bar" not in page.get_text()
    assert "printed <b>text</b>" in page.get_text()


def test_a_page_scrolls_wide_tables_in_their_own_box_and_knows_light_and_dark(page):
    for table in page.find_all("table"):
        assert "wide" in table.find_parent("div")["class"]
    assert ".wide { overflow-x: auto; }" in page.style.string
    assert "prefers-color-scheme: dark" in page.style.string


def test_the_summary_is_the_headline_of_the_stored_verdicts(executed):
    assert export.summary(executed) == claims.headline(claims.symmetric_noise(records(ipcs=(50,))))


def test_a_notebook_without_results_and_a_file_that_is_no_notebook_are_refused(tmp_path):
    nbformat.write(new_notebook(cells=[new_code_cell("1 + 1")]), tmp_path / "fresh.ipynb")
    with pytest.raises(InputError, match="holds no result; run it first"):
        export.summary(tmp_path / "fresh.ipynb")
    (tmp_path / "text.ipynb").write_text("no notebook")
    for path in ("text.ipynb", "absent.ipynb"):
        with pytest.raises(InputError, match="cannot be read as a notebook"):
            export.export(tmp_path / path, tmp_path / "page.html")


def test_provenance_names_versions_hashes_device_time_and_store(tmp_path):
    table = records(ipcs=(50,), seeds=1)
    text = export.provenance(table, tmp_path).data
    for fact in ("ddlnl 0.1.0", "torch 2.12.1", "0" * 16, "1" * 16, "cpu (threads: 1)", "2025-01-01", str(tmp_path)):
        assert fact in text
    assert f"{len(table)} cells, profile demo" in text
    assert "0 h 1 min 40 s" in text


def test_provenance_covers_what_was_computed_from_cells_and_counts_a_record_of_several_rows_once(tmp_path):
    table = records(ipcs=(50,), seeds=1)
    later = table.assign(key="attack-" + table["key"], seconds=1.0, finished="2026-02-03T00:00:00+00:00", device="GPU")
    text = export.provenance([table, pd.concat([later, later])], tmp_path).data
    assert f"{len(table)} cells and {len(table)} records computed from them, profile demo" in text
    assert "0 h 2 min 5 s" in text
    assert "to 2026-02-03" in text
    assert "GPU (threads: 1)" in text
    assert "none" in export.provenance([table.head(0), pd.DataFrame()], tmp_path).data
