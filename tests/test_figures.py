"""Figures: they show what was measured, and can be read."""

from __future__ import annotations

import base64
import io
import itertools

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from scipy import stats
from synthetic import RATES, records

from ddlnl import figures
from ddlnl.errors import InputError

GRID = {"datasets": ("cifar10", "digits"), "methods": ("dance", "datm")}
LAYOUTS = [
    pytest.param({"ipcs": (50,)}, None, id="one IPC"),
    pytest.param({"ipcs": (50,), **GRID}, "page", id="one IPC, two datasets, two methods"),
    pytest.param({}, None, id="several IPCs"),
    pytest.param(GRID, "page", id="grid"),
    pytest.param({"datasets": ("cifar10",), "methods": ("dance", "datm")}, "column", id="stacked"),
    pytest.param({"ipcs": (1, 10, 50, 500, 1000), "seeds": 2, "datasets": ("cifar10",)}, "column", id="long grid"),
]


def test_points_are_means_over_seeds_with_the_t_interval_of_their_mean():
    table = records(ipcs=(10,))
    point = figures.points(table).set_index(["method", "rate"]).loc[("dance", 0.4)]
    seeds = 100 * table.query("method == 'dance' and rate == 0.4")["accuracy_last"]
    interval = stats.t.interval(0.95, 2, seeds.mean(), stats.sem(seeds))
    assert point["last"] == pytest.approx(seeds.mean())
    assert point["error"] == pytest.approx((interval[1] - interval[0]) / 2)
    assert (point["error_of"], point["seeds"], point["students"], point["seconds"]) == ("seeds", 3, 5, 12)


def test_with_one_seed_the_error_is_the_deviation_over_students_and_with_one_student_there_is_none():
    table = records(ipcs=(10,), seeds=1)
    point, record = figures.points(table).iloc[0], table.query("method == 'dance'").iloc[0]
    assert point["error"] == pytest.approx(100 * np.std(record["accuracies_last"], ddof=1))
    assert point["error_of"] == "students"
    assert figures.points(records(seeds=1, students=1).fillna({"std_last": 0.0}))["error"].isna().all()


def test_with_several_ipcs_each_rate_has_a_solid_line_and_a_dashed_line_at_the_full_set():
    table = records()
    (ax,) = figures.symmetric(table).axes
    points = figures.points(table)
    for rate in RATES:
        full = points.query("method == 'full' and rate == @rate")["last"].item()
        dashed = [line for line in ax.get_lines() if line.get_linestyle() == "--" and line.get_ydata()[0] == full]
        assert [line.get_color() for line in dashed] == [figures.colour(rate)]
        solid = tuple(points.query("method == 'dance' and rate == @rate")["last"])
        assert solid in [tuple(line.get_ydata()) for line in ax.get_lines() if line.get_color() == figures.colour(rate)]


def test_with_one_ipc_accuracy_is_drawn_against_the_noise_rate():
    table = records(ipcs=(50,))
    (ax,) = figures.symmetric(table).axes
    points = figures.points(table)
    near = [line for line in ax.get_lines() if np.allclose(line.get_xdata(), RATES, atol=0.01)]
    drawn = [tuple(line.get_ydata()) for line in near]
    for _, line in points.groupby("method"):
        assert tuple(line["last"]) in drawn
    assert "IPC 50" in ax.get_xlabel()


def test_there_is_a_panel_per_dataset_and_method():
    titles = [ax.get_title() for ax in figures.symmetric(records(**GRID)).axes]
    assert titles == ["CIFAR-10, DANCE", "CIFAR-10, DATM", "digits, DANCE", "digits, DATM"]


@pytest.mark.parametrize(("kind", "width"), LAYOUTS)
def test_text_is_at_least_7_points_and_nothing_covers_the_data_or_leaves_the_page(kind, width):
    figure = figures.symmetric(records(**kind), width=width)
    figure.draw_without_rendering()
    inches = figure.get_figwidth()
    assert inches == figures.WIDTHS[width or "column"]
    for text in figure.findobj(Text):
        assert text.get_fontsize() >= 7
    page = figure.bbox
    boxes = [ax.get_tightbbox() for ax in figure.axes] + [legend.get_window_extent() for legend in figure.legends]
    for box in boxes:
        assert page.x0 - 1 <= box.x0 < box.x1 <= page.x1 + 1
        assert page.y0 - 1 <= box.y0 < box.y1 <= page.y1 + 1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.padded(-1).overlaps(other.padded(-1))


def test_neighbouring_rates_differ_in_colour_under_every_colour_vision():
    visions = {  # of linear RGB: Machado, Oliveira and Fernandes 2009, severity 1
        "normal": np.eye(3),
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
    }
    to_xyz = np.array([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0178, 0.1095, 0.8730]])  # white: 1, 1, 1
    colours = np.array([figures.colour(rate)[:3] for rate in RATES])
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    for matrix in visions.values():
        xyz = np.clip(linear @ np.transpose(matrix), 0, 1) @ to_xyz.T
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
        lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 20


def test_published_accuracies_are_marked_only_on_their_dataset():
    def hollow(dataset):
        ax = figures.symmetric(records(datasets=(dataset,))).axes[0]
        marks = [line for line in ax.get_lines() if line.get_markerfacecolor() == "none"]
        return sorted(round(float(line.get_ydata()[0]), 1) for line in marks)

    assert hollow("digits") == []
    assert hollow("cifar10") == [15.4, 31.0, 47.1, 50.6, 70.8, 76.1, 84.8]


def test_published_accuracies_are_fractions_one_per_cell_each_with_its_source():
    facts = figures.anchors()
    assert not facts.duplicated(["dataset", "noise", "method", "ipc"]).any()
    assert facts["accuracy"].between(0, 1).all()
    assert facts["source"].str.contains("arXiv").all()


def test_an_unknown_width_and_a_table_without_distilled_sets_are_refused():
    with pytest.raises(InputError, match="may be column or page"):
        figures.symmetric(records(), width="poster")
    with pytest.raises(InputError, match="no distilled set"):
        figures.symmetric(records().query("method != 'dance'"))


def test_the_alternative_text_tells_both_ends_of_each_pair_of_lines():
    table = records(ipcs=(50,))
    points = figures.points(table).set_index(["method", "rate"])["last"]
    text = figures.alt_text(table)
    for rate in (0.0, 0.8):
        assert f"{points['dance', rate]:.1f} against {points['full', rate]:.1f} % at {rate:g}" in text
    assert "digits, DANCE (IPC 50)" in text


def test_a_shown_figure_is_one_image_with_its_size_and_alternative_text(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", lambda data, metadata, raw: shown.append((data, metadata["image/png"])))
    figures.show(figures.symmetric(records(ipcs=(50,))), "what it says")
    ((data, about),) = shown
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as image:
        assert image.size == (2 * about["width"], 2 * about["height"])
    assert about["alt"] == data["text/plain"] == "what it says"


def test_saved_figures_repeat_byte_for_byte(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths = figures.save(figures.symmetric(records(ipcs=(50,))), tmp_path / folder / "fig2", alt="what it says")
        assert [path.suffix for path in paths] == [".svg", ".pdf", ".png"]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
    assert "what it says" in (tmp_path / "one" / "fig2.svg").read_text()
