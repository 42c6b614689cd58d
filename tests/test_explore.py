"""Looking through a store: what is shown first, what can be chosen, and how cells stand beside each other."""

from __future__ import annotations

import itertools

import ipywidgets
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from outcomes import distilled
from synthetic import records

from ddlnl import compared, explore, figures, store, stored_sets
from ddlnl.explore import Choice
from ddlnl.rcig_evaluation import Protocol

CONFUSION = (10 * np.eye(10) + 1).astype(int).tolist()
CURVES = [{"epochs": [10, 20], "test": [[0.2, 0.4], [0.3, 0.5]], "validation": [], "confusion": CONFUSION}]


def results(**kinds) -> pd.DataFrame:
    """Records as a store gives them, the sets themselves not kept."""
    table = records(**{"ipcs": (10,), "rates": (0.0, 0.4), "seeds": 2} | kinds)
    columns = {"curves": CURVES, "confusion": CONFUSION, "parents": {"set": "nowhere"}}
    return table.assign(**{name: [value] * len(table) for name, value in columns.items()})


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, as bundles."""
    found = []
    for module in (explore, figures):
        monkeypatch.setattr(module, "display", lambda data, **_: found.append(data))
    return found


START = Choice("demo", "digits", "symmetric:0.4", "none", 10, "dance", "datm")


def test_first_comes_the_condition_with_the_most_methods_and_of_those_the_noisiest():
    table = results(methods=("dance", "datm"))
    more = results(methods=("dance", "datm"), rates=(0.2,)).query("method != 'random'")
    assert explore.first(pd.concat([table, more])) == START
    alone = explore.first(table.query("method in ('dance', 'random')"))
    assert (alone.method, alone.beside) == ("dance", "random")
    assert explore.first(table.query("method == 'full'")) is None


def test_a_choice_is_shown_as_one_figure_of_both_methods_of_the_first_seed(shown, tmp_path):
    table = results(methods=("dance", "datm"))
    explore.view(table, START, tmp_path)
    (figure,) = shown
    mine = table.query("method == 'dance' and noise == 'symmetric:0.4' and seed == 0")["accuracy_last"].item()
    assert f"DANCE, IPC 10: {100 * mine:.1f} % test accuracy" in figure["text/plain"]
    assert "DATM, IPC 10" in figure["text/plain"]
    assert figure["text/plain"].startswith("digits, symmetric 0.4 (40.0 % wrong), profile demo, seed 0. ")


def test_both_methods_are_shown_with_the_first_seed_that_both_have(shown, tmp_path):
    table = results(methods=("dance", "datm"), seeds=3).query("not (method == 'datm' and seed == 0)")
    explore.view(table, START, tmp_path)
    told = shown[0]["text/plain"]
    assert "profile demo, seed 1. " in told
    for method in ("dance", "datm"):
        mine = table.query(f"method == '{method}' and noise == 'symmetric:0.4' and seed == 1")["accuracy_last"].item()
        assert f"{method.upper()}, IPC 10: {100 * mine:.1f} %" in told
    explore.view(table.query("(method == 'dance') == (seed == 0)"), START, tmp_path)
    words = "No seed has records of both DANCE and DATM for IPC 10, demo, digits, symmetric:0.4, imbalance none."
    assert shown[1].data == words


def test_a_choice_without_records_is_one_sentence(shown, tmp_path):
    explore.view(results(), START, tmp_path)
    (told,) = shown
    assert told.data == "There is no record of DATM for IPC 10, demo, digits, symmetric:0.4, imbalance none."


def test_sets_that_the_store_has_are_drawn_and_others_are_said_to_be_missing(tmp_path):
    small = distilled(np.eye(10), names=tuple("0123456789"))
    stored_sets.save(store.Store(tmp_path), "mine", small, "fitted")
    store.write_tensors(store.Store(tmp_path).artefact_path("fitted"), small.preprocessing.tensors(), {})
    table = results(methods=("dance", "datm")).query("noise == 'clean' and seed == 0 and method in ('dance', 'datm')")
    rows = table.assign(parents=[{"set": "mine"}, {"set": "nowhere"}])
    sets = [explore._set_of(row, store.Store(tmp_path)) for _, row in rows.iterrows()]
    axes = np.reshape(compared.cells(rows, sets).axes, (2, 4))
    assert [len(ax.get_images()) for ax in axes[0]] == [10, 1, 0, 0]
    np.testing.assert_array_equal(axes[0, 0].get_images()[3].get_array(), small.pictures()[3].permute(1, 2, 0))
    np.testing.assert_allclose(axes[0, 1].get_images()[0].get_array(), np.eye(10))
    assert [text.get_text() for text in axes[1, 0].texts] == ["no small set\nin the store"]
    heights = [bar.get_height() for bar in axes[1, 3].patches]
    np.testing.assert_allclose(heights, 100 * 11 / 20)
    assert axes[0, 2].get_ylim() == axes[1, 2].get_ylim()


def test_free_labels_are_drawn_from_minus_to_plus_the_largest():
    learned = 3 * np.eye(10) - 1
    small = distilled(learned, method="rcig", protocol=Protocol())
    ax = compared.cells(results().head(1), [small]).axes[1]
    np.testing.assert_allclose(ax.get_images()[0].get_array(), learned)
    assert ax.get_images()[0].get_clim() == (-2, 2)


@pytest.mark.parametrize("known", [True, False])
def test_text_is_at_least_7_points_and_no_panel_covers_another_or_leaves_the_page(known):
    table = results(methods=("dance",)).query("noise == 'clean' and seed == 0").head(3)
    rows = pd.concat([table.query("method == 'dance'"), table.query("method == 'random'")])
    rows = rows if known else rows.assign(confusion=None)
    figure = compared.cells(rows, [distilled(np.eye(10)) if known else None] * len(rows))
    figure.draw_without_rendering()
    assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 7
    boxes = [ax.get_tightbbox() for ax in figure.axes] + [text.get_window_extent() for text in figure.texts]
    for box in boxes:
        assert figure.bbox.x0 - 1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 - 1 <= box.y0 < box.y1 <= figure.bbox.y1 + 1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.padded(-1).overlaps(other.padded(-1))


def test_the_alternative_text_tells_the_best_and_the_worst_class_where_they_are_known():
    row = results().head(1)
    skewed = np.diag([50, 90] + [80] * 8) + 1
    told = compared.alt_text(row.assign(confusion=[skewed.tolist()]))
    assert "from 85.0 % in class 0 to 91.0 % in class 1." in told
    assert "in class" not in compared.alt_text(row.assign(confusion=None))


def test_of_two_records_of_one_cell_the_one_made_last_counts():
    table = records(ipcs=(10,))
    again = table.head(1).assign(finished="2026-01-01T00:00:00+00:00", accuracy_last=0.123)
    newest = explore.newest(pd.concat([again, table]))
    assert len(newest) == len(table)
    assert 0.123 in set(newest["accuracy_last"])


def test_the_lists_hold_every_value_and_changing_one_changes_the_picture_and_its_alternative_text(tmp_path):
    table = pd.concat([results(methods=("dance", "datm")), results(ipcs=(50,))])
    lists, picture = explore.panel(table, tmp_path).children
    found = {one.description: (list(one.options), one.value) for one in lists.children}
    assert found["ipc"] == ([10, 50], 10)
    assert found["noise"] == (["clean", "symmetric:0.4"], "symmetric:0.4")
    assert found["method"] == (["dance", "datm", "random", "random_soft", "predicted", "full"], "dance")
    assert "DATM, IPC 10" in picture.value
    lists.children[-1].value = "full"
    assert picture.value.startswith('<img src="data:image/png;base64,')
    assert "full noisy set, 1347 images" in picture.value
    lists.children[4].value = 50
    lists.children[-1].value = "datm"
    assert picture.value.startswith("<p>There is no record of DATM for IPC 50, demo,")


def test_no_widget_of_the_panel_is_an_output_widget_on_which_a_run_without_a_browser_can_hang(tmp_path):
    waiting = [explore.panel(results(methods=("dance", "datm")), tmp_path)]
    while waiting:
        widget = waiting.pop()
        assert not isinstance(widget, ipywidgets.Output)
        waiting += getattr(widget, "children", ())


def test_an_empty_store_has_nothing_to_choose_and_says_what_to_run(tmp_path):
    table = explore.newest(store.table(tmp_path))
    assert explore.first(table) is None
    assert "run another notebook first" in explore.panel(table, tmp_path).value
