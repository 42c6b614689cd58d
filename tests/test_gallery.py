"""The gallery: every notebook a page, an index of them, and all of it whole in a real browser."""

from __future__ import annotations

import html
import re
from pathlib import Path

import nbformat
import papermill
import pytest
from browser import BROWSER, chromium, faults
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from synthetic import records
from test_claims_students import unbalanced, with_confusion

from ddlnl import claims, degradation, export, figures, gallery
from ddlnl.errors import InputError

CLAIM = "**Claim C1** ([paper](https://arxiv.org/abs/2411.11924)): small sets beat the whole one.\n\nMore words."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A gallery of notebooks that have run: figures, verdicts, tables and a widget, made of synthetic records."""
    folder = tmp_path_factory.mktemp("gallery")
    with pytest.MonkeyPatch.context() as patch:
        for stem, show in SHOWN.items():
            outputs = [new_output("stream", name="stderr", text="a progress bar")]

            def keep(data, metadata=None, raw=True, outputs=outputs):
                outputs.append(new_output("display_data", data=data, metadata=metadata or {}))

            patch.setattr(claims._show, "display", keep)
            patch.setattr(figures, "display", keep)
            show()
            if stem == "widget":
                view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "VBox()"}
                keep(view)
            cells = [new_markdown_cell(f"# The *{stem}* notebook\n\n{CLAIM}"), new_code_cell("run()", outputs=outputs)]
            nbformat.write(new_notebook(cells=cells), folder / f"{stem}.ipynb")
    cards = [gallery._page(folder, stem) for stem in SHOWN]
    (folder / "index.html").write_text(gallery._index(cards))
    return folder


def show_lines() -> None:
    table = records(methods=("dance", "datm"), ipcs=(10,))
    figures.show(figures.symmetric(table), figures.alt_text(table))
    claims.show(claims.symmetric_noise(table))


def show_panels() -> None:
    table = records(methods=("dance", "datm"), datasets=("cifar10",))
    figures.show(figures.symmetric(table), figures.alt_text(table))
    claims.show(claims.versus(table, reference="predicted"))
    figures.show(degradation.under_noise(table), degradation.under_noise_alt(table))


def show_classes() -> None:
    table = unbalanced(0.4)
    figures.show(degradation.under_imbalance(table), degradation.under_imbalance_alt(table))
    claims.show(claims.tails(table), claims.tails)
    claims.show(claims.absorbed(with_confusion("asymmetric:0.4", {"dance": 0.7, "full": 0.4})), claims.absorbed)


SHOWN = {"lines": show_lines, "panels": show_panels, "widget": show_classes}


@pytest.fixture(scope="module")
def index(folder):
    return BeautifulSoup((folder / "index.html").read_text(), "html.parser")


def test_the_index_has_a_card_per_notebook_with_claim_verdict_picture_and_links(folder, index):
    assert [card.h2.get_text() for card in index.find_all("article")] == [f"The {stem} notebook" for stem in SHOWN]
    for stem, card in zip(SHOWN, index.find_all("article"), strict=True):
        assert card.h2.a["href"] == f"{stem}.html"
        assert "small sets beat the whole one." in card.find(class_="claim").get_text()
        assert "More words" not in card.get_text()
        assert len(card.img["alt"]) > 40
        verdicts = [one.get_text() for one in card.find_all(class_="verdict")]
        assert verdicts
        assert set(verdicts) <= {claims.HOLDS, claims.FAILS, claims.OPEN}
        for link in card.find_all("a"):
            assert link["href"].startswith("https://arxiv.org") or (folder / link["href"]).is_file()


def test_every_figure_is_there_as_svg_and_pdf_with_its_alternative_text(folder):
    names = {path.name for path in (folder / "figures").iterdir()}
    assert {f"panels-{number}.{suffix}" for number in (1, 2) for suffix in ("svg", "pdf")} <= names
    page = BeautifulSoup((folder / "panels.html").read_text(), "html.parser")
    for number, image in enumerate(page.find_all("img"), start=1):
        assert image["alt"] in html.unescape((folder / "figures" / f"panels-{number}.svg").read_text())
        assert (folder / "figures" / f"panels-{number}.pdf").read_bytes().startswith(b"%PDF")


def test_a_page_of_the_gallery_leads_back_and_to_its_files(folder):
    page = BeautifulSoup((folder / "lines.html").read_text(), "html.parser")
    links = [link["href"] for link in page.nav.find_all("a")]
    assert links == ["index.html", "figures/lines-1.pdf", "figures/lines-1.svg"]
    alone = BeautifulSoup(export.export(folder / "lines.ipynb", folder / "alone.html").read_text(), "html.parser")
    assert alone.nav is None


def test_where_a_widget_was_the_page_says_that_it_needs_the_notebook(folder):
    page = BeautifulSoup((folder / "widget.html").read_text(), "html.parser")
    assert "Lists to choose from are here where the notebook runs." in page.get_text()
    assert "VBox" not in page.get_text()


@pytest.mark.parametrize("sentences", [{}, {"sentences": [{"verdict": None, "text": "Twice as fast."}]}])
def test_a_measurement_that_has_no_verdict_is_told_without_one(tmp_path, sentences):
    told = {"headline": "Twice as fast."} | sentences
    output = new_output("display_data", data={claims.MIME: told, "text/plain": ""})
    cells = [new_markdown_cell("# Speed"), new_code_cell("bench()", outputs=[output])]
    nbformat.write(new_notebook(cells=cells), tmp_path / "speed.ipynb")
    page = BeautifulSoup(gallery._index([gallery._page(tmp_path, "speed")]), "html.parser")
    assert page.article.li.get_text() == "Twice as fast."
    assert page.article.find(class_="verdict") is None


def test_notebooks_are_run_with_the_parameters_that_they_have(tmp_path):
    source = "ipc: int = 1  # images per class\nstore_dir: str = None  # folder of results"
    parameters = new_code_cell(source, metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell(f"# One\n\n{CLAIM}"), parameters, new_code_cell("print(ipc, store_dir)")]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), tmp_path / "fig2_symmetric.ipynb")
    index = gallery.build(tmp_path / "out", tmp_path, tmp_path / "store", given={"ipc": 7, "rates": [0.1]})
    page = BeautifulSoup((tmp_path / "out" / "fig2_symmetric.html").read_text(), "html.parser")
    assert f"7 {tmp_path / 'store'}" in page.get_text()
    assert "fig2_symmetric.html" in index.read_text()


def test_a_gallery_of_records_has_the_notebooks_that_need_no_more_and_asks_for_all_methods(tmp_path):
    for stem, more in (("fig2_symmetric", "\nrecords: str = None  # folder of records"), ("fig3_images", "")):
        source = f'methods: list = ["dance"]  # distillers\nipc: int = 1  # images per class{more}'
        cells = [new_markdown_cell(f"# One\n\n{CLAIM}"), new_code_cell(source, metadata={"tags": ["parameters"]})]
        cells += [new_code_cell("print(methods, ipc, records)")] * bool(more)
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), tmp_path / f"{stem}.ipynb")
    gallery.build(tmp_path / "out", tmp_path, records=tmp_path / "results")
    page = BeautifulSoup((tmp_path / "out" / "fig2_symmetric.html").read_text(), "html.parser")
    assert f"None 1 {tmp_path / 'results'}" in page.get_text()
    assert not (tmp_path / "out" / "fig3_images.html").exists()


KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def test_a_folder_without_notebooks_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"There are no notebooks in .*; name the folder that has them\."):
        gallery.build(tmp_path / "out", tmp_path)


def test_every_notebook_of_the_repository_has_its_place_in_the_gallery_and_the_parameters_given_there():
    notebooks = {path.stem: path for path in gallery.NOTEBOOKS.glob("*.ipynb")}
    assert set(notebooks) == {*gallery.SHELF, gallery.LAST}
    for stem, given in [*gallery.SHELF.items(), *gallery.RECORDED.items()]:
        assert set(given) <= set(papermill.inspect_notebook(notebooks[stem]))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed, so no page is opened in a real browser")
def test_in_a_real_browser_no_page_complains_asks_for_anything_or_overflows(folder, tmp_path):
    with chromium(tmp_path) as tab:
        for page in (folder / "index.html", *(folder / f"{stem}.html" for stem in SHOWN)):
            assert faults(tab, page) == []
            assert tab.open(page, 1400, "light")["images"] > 0


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed, so no page is opened in a real browser")
def test_the_browser_check_finds_what_it_looks_for(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<body style='margin:0'><div style='width:900px'>wide</div><img src='http://127.0.0.1:9/x.png'>"
        "<script>console.error('no')</script>"
    )
    with chromium(tmp_path / "profile") as tab:
        found = "\n".join(faults(tab, page))
    for fault in ("is wider", "without alternative text", "not shown", "complains: .*no", "asks for .*x.png"):
        assert re.search(f"bad.html at 400 pixels in dark .*{fault}", found), fault
    assert "looks the same in light and dark" in found


def test_the_gallery_is_a_command(monkeypatch, capsys):
    from ddlnl import __main__

    asked = []
    monkeypatch.setattr(gallery, "build", lambda *given: asked.append(given) or Path("place/index.html"))
    __main__.main(["gallery", "place", "--store-dir", "results", "--workers", "2"])
    __main__.main(["gallery", "place", "--records", "results", "--profile", "laptop"])
    laptop = {"profile": "laptop"}
    assert asked == [("place", None, "results", 2, {}, None), ("place", None, None, 1, laptop, "results")]
    assert capsys.readouterr().out == "The index is place/index.html.\n" * 2
