"""Looking through a store: what can be chosen, and what is shown."""

from __future__ import annotations

import pandas as pd
import pytest
from synthetic import records

from ddlnl import claims, explore, figures, store


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, as bundles."""
    found = []
    for module in (explore, figures, claims._show):
        monkeypatch.setattr(module, "display", lambda data, **_: found.append(data))
    return found


def two_kinds() -> pd.DataFrame:
    symmetric = records(ipcs=(10, 50))
    few = records(rates=(0.4,), ipcs=(10,), seeds=2)
    return pd.concat([symmetric, few.assign(noise="asymmetric:0.4")])


def test_what_can_be_chosen_is_what_the_store_has_most_records_first():
    assert explore.choices(two_kinds()) == [
        explore.Choice("demo", "digits", "symmetric"),
        explore.Choice("demo", "digits", "asymmetric"),
    ]


def test_a_choice_is_shown_as_figure_and_verdict(shown):
    explore.view(two_kinds(), explore.Choice("demo", "digits", "asymmetric", 10))
    figure, verdict = shown
    assert figure["text/plain"].startswith("Test accuracy after the last epoch by asymmetric noise rate")
    assert [row["tried"] for row in verdict[claims.MIME]["verdicts"]] == ["10"] * 6  # clean and noisy, three rules


def test_a_choice_without_records_is_one_sentence(shown):
    explore.view(two_kinds(), explore.Choice("demo", "digits", "asymmetric", 100))
    (told,) = shown
    assert told.data == "There is nothing to draw: the table holds no distilled set under asymmetric noise."


def test_of_two_records_of_one_cell_the_one_made_last_counts():
    table = records(ipcs=(10,))
    again = table.head(1).assign(finished="2026-01-01T00:00:00+00:00", accuracy_last=0.123)
    newest = explore.newest(pd.concat([again, table]))
    assert len(newest) == len(table)
    assert 0.123 in set(newest["accuracy_last"])


def test_the_lists_hold_every_value_and_changing_one_changes_what_is_shown(shown):
    lists, _ = explore.panel(two_kinds()).children
    options = {one.description: list(one.options) for one in lists.children}
    assert options == {
        "profile": ["demo"],
        "dataset": ["digits"],
        "kind": ["symmetric", "asymmetric"],
        "ipc": ["all", 10, 50],
    }
    shown.clear()
    lists.children[2].value = "asymmetric"
    assert any("asymmetric noise rate" in bundle["text/plain"] for bundle in shown)


def test_an_empty_store_says_what_to_run_and_has_nothing_to_choose(shown, tmp_path):
    table = explore.newest(store.table(tmp_path))
    explore.first(table)
    assert "run another notebook first" in shown[0].data
    lists, _ = explore.panel(table).children
    assert [list(one.options) for one in lists.children] == [[], [], [], ["all"]]
