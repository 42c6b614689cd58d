"""Figures of what is lost to noise and to imbalance: they show every number, and can be read."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from synthetic import RATES, records
from test_claims_students import unbalanced

from ddlnl import degradation, figures
from ddlnl.errors import InputError

FIGURES = [
    pytest.param(lambda: degradation.under_noise(records(ipcs=(50,))), id="noise, one IPC"),
    pytest.param(lambda: degradation.under_noise(records(methods=("dance", "datm", "rcig"))), id="noise, three IPCs"),
    pytest.param(lambda: degradation.under_imbalance(unbalanced(0.3)), id="imbalance by class"),
    pytest.param(lambda: degradation.under_imbalance(unbalanced(0.3).drop(columns="confusion")), id="imbalance alone"),
    pytest.param(lambda: figures.accuracy(people(), "human"), id="labels of people, one IPC"),
    pytest.param(lambda: figures.accuracy(people((1, 10)), "human"), id="labels of people, two IPCs"),
]


def people(ipcs=(10,)) -> pd.DataFrame:
    """Records of clean labels and of the five label sets of CIFAR-10N, without nominal rates."""
    sets = {0.1: ("aggre", 0.09), 0.17: ("random1", 0.172), 0.18: ("random2", 0.181), 0.4: ("worst", 0.402)}
    table = records(datasets=("cifar10",), rates=(0.0, *sets), ipcs=ipcs)
    for rate, (name, wrong) in sets.items():
        here = table["rate"] == rate
        table.loc[here, ["noise", "realised_rate", "rate"]] = [f"human:{name}", wrong, np.nan]
    return table


@pytest.mark.parametrize("draw", FIGURES)
def test_text_is_at_least_7_points_and_no_panel_or_legend_covers_another_or_leaves_the_page(draw):
    figure = draw()
    figure.draw_without_rendering()
    for text in figure.findobj(Text):
        assert text.get_fontsize() >= 7
    page = figure.bbox
    boxes = [ax.get_tightbbox() for ax in figure.axes if ax.axison] + [
        one.get_window_extent() for one in (*figure.legends, *figure.texts)
    ]
    for box in boxes:
        assert page.x0 - 1 <= box.x0 < box.x1 <= page.x1 + 1
        assert page.y0 - 1 <= box.y0 < box.y1 <= page.y1 + 1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.padded(-1).overlaps(other.padded(-1))


def test_a_dot_for_every_method_and_rate_is_at_the_mean_over_seeds():
    table = records(ipcs=(50,))
    (ax,) = degradation.under_noise(table).axes
    drawn = np.concatenate([line.get_xdata() for line in ax.get_lines() if len(line.get_xdata()) == 1])
    points = figures.points(table)
    assert len(points) == 5 * len(RATES)
    for mean in points["last"]:
        assert np.isclose(drawn, mean).any()
    assert [label.get_text() for label in ax.get_yticklabels()][-1] == "full noisy set"


def test_methods_that_learn_with_noise_or_clean_first_stand_beside_the_others_and_are_no_distilled_sets():
    table = records(ipcs=(50,))
    cleaned = table.query("method == 'dance'").assign(method="cleaned_dance")
    table = pd.concat([table, table.query("method == 'full'").assign(method="gce"), cleaned])
    (ax,) = degradation.under_noise(table).axes
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert rows[:2] == ["DANCE", figures.name("cleaned_dance")]
    assert rows[-2:] == ["GCE, all images", "full noisy set"]
    words = " ".join(text.get_text() for text in figures.accuracy(table).findobj(Text))
    assert "GCE" not in words
    assert rows[1] not in words


def test_every_class_has_its_accuracy_in_the_panel_of_its_imbalance():
    table = unbalanced(0.3)
    overall, balanced, skewed = degradation.under_imbalance(table).axes
    assert (balanced.get_title(), skewed.get_title()) == ("Balanced", "Imbalance factor 10")
    for ax, imbalance in ((balanced, "none"), (skewed, "longtail:10")):
        rows = table[(table["imbalance"] == imbalance) & (table["method"] == "dance")]
        counts = np.sum(rows["confusion"].tolist(), axis=0)
        expected = 100 * np.diag(counts) / counts.sum(1)
        assert any(np.allclose(line.get_ydata(), expected) for line in ax.get_lines())
    assert [label.get_text() for label in overall.get_xticklabels()] == ["1", "10"]


def test_labels_of_people_are_drawn_at_the_share_that_is_wrong():
    (ax,) = figures.accuracy(people(), "human").axes
    assert ax.get_xlabel() == "Share of wrong labels (IPC 10)"
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == 5]
    assert any(np.allclose(line.get_xdata(), [0, 0.09, 0.172, 0.181, 0.402]) for line in lines)


def test_the_alternative_texts_tell_the_numbers_of_the_figures():
    table = records(ipcs=(50,))
    points = figures.points(table).set_index(["method", "rate"])["last"]
    told = degradation.under_noise_alt(table)
    assert told.startswith("Test accuracy under clean labels and under symmetric 0.8 noise: ")
    assert f"DANCE (IPC 50) {points['dance', 0.0]:.1f} to {points['dance', 0.8]:.1f} %" in told
    table = unbalanced(0.3)
    mean = 100 * table.query("method == 'dance' and imbalance != 'none'")["accuracy_last"].mean()
    assert f"{mean:.1f} % at 10" in degradation.under_imbalance_alt(table)


@pytest.mark.parametrize("draw", [degradation.under_noise, degradation.under_imbalance])
def test_without_small_sets_or_with_two_datasets_there_is_no_figure(draw):
    for table in (records().query("method == 'full'"), records(datasets=("digits", "cifar10"))):
        with pytest.raises(InputError, match="must hold small sets of one dataset"):
            draw(table)
