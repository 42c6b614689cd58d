"""What matching adds to its own initial set: paired over seeds, else over students, and only where there is a start."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import record

from ddlnl import claims
from ddlnl.claims import FAILS, HOLDS, OPEN, STUDENTS
from ddlnl.errors import InputError


def cell(before, after, seed: int = 0, evaluate_at=(0.0, 1.0), method="datm", rate=0.4, ipc=10, **changes) -> dict:
    """A record whose students (a list each) have these test accuracies (%) at the first and the last checkpoint."""
    curves = [
        {"epochs": [1, 2], "test": [[0.0, one / 100] for one in side], "validation": []} for side in (before, after)
    ]
    names = [f"iteration-{round(100 * part)}" for part in evaluate_at] if method in ("datm", "dance") else ["chosen"]
    made = record("digits", method, rate, ipc, seed, 2, 0.01)
    return made | {"curves": curves[-len(names) :], "checkpoints": names} | changes


def only(*cells: dict) -> pd.Series:
    found = claims.matching(pd.DataFrame(cells))
    assert len(found) == 1
    return found.iloc[0]


def test_with_several_seeds_the_interval_is_the_paired_one_over_means_of_students():
    before = {0: [40, 44], 1: [50, 52], 2: [30, 31]}
    after = {0: [45, 47], 1: [52, 56], 2: [37, 36]}
    row = only(*(cell(before[seed], after[seed], seed) for seed in before))
    differences = [np.mean(after[seed]) - np.mean(before[seed]) for seed in before]
    low, high = stats.t.interval(0.95, 2, np.mean(differences), stats.sem(differences))
    assert (row["gain"], row["low"], row["high"]) == pytest.approx((np.mean(differences), low, high))
    assert (row["initial"], row["final"]) == pytest.approx(
        (np.mean(list(before.values())), np.mean(list(after.values())))
    )
    assert (row["n"], row["unit"], row["verdict"]) == (3, "seeds", HOLDS)


def test_with_one_seed_the_students_are_the_unit_and_the_interval_is_welchs():
    before, after = [40.0, 44.0, 43.0], [50.0, 50.5, 51.0]
    row = only(cell(before, after))
    interval = stats.ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx(tuple(interval))
    assert (row["n"], row["unit"], row["verdict"]) == (3, STUDENTS, HOLDS)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([40, 41], [60, 61], HOLDS),
        ([60, 61], [40, 41], FAILS),
        ([40, 60], [45, 61], OPEN),
        ([40, 40], [60, 60], OPEN),  # no spread at all is no sign of certainty
        ([40], [60], OPEN),
    ],
)
def test_a_gain_holds_or_fails_only_where_the_whole_interval_is_on_one_side(before, after, verdict):
    assert only(cell(before, after))["verdict"] == verdict


def test_cells_that_were_not_evaluated_before_the_first_update_are_left_out():
    started = cell([40, 41], [60, 61])
    others = [
        cell([40, 41], [60, 61], method="dance", evaluate_at=(1.0,)),
        cell([40, 41], [60, 61], method="dance", evaluate_at=(0.5, 1.0), ipc=1),
        cell([40, 41], [60, 61], method="random", evaluate_at=(1.0,)),
        cell([40, 41], [60, 61], noise="asymmetric:0.4"),
    ]
    others.append(cell([40, 41], [60, 61], method="dance", ipc=50))
    others[-1]["curves"][0] = None  # its students diverged
    others.append(cell([40, 41], [60, 61], method="dance", ipc=20))
    others[-1]["curves"][-1] = None
    assert only(started, *others)["method"] == "datm"
    for other in others:
        assert claims.matching(pd.DataFrame([other])).empty


def test_every_method_ipc_and_rate_is_a_row_and_the_same_cell_twice_is_refused():
    cells = [cell([40, 41], [60, 61], ipc=ipc, rate=rate) for ipc in (1, 10) for rate in (0.0, 0.4)]
    found = claims.matching(pd.DataFrame(cells))
    assert list(zip(found["ipc"], found["rate"], strict=True)) == [(1, 0.0), (1, 0.4), (10, 0.0), (10, 0.4)]
    assert {"initial", "final", "gain", "low", "high", "n", "unit", "verdict"} <= set(found.columns)
    with pytest.raises(InputError, match="two records of the cell"):
        claims.matching(pd.DataFrame([*cells, cells[0]]))


def test_what_is_shown_has_the_rule_the_numbers_and_their_signs_and_verdicts_for_the_gallery(monkeypatch):
    shown = {}
    monkeypatch.setattr(claims._show, "display", lambda data, raw: shown.update(data))
    table = pd.DataFrame([cell([60, 61], [40, 41]), cell([40], [60], rate=0.8)])
    claims.show(claims.matching(table), claims.matching)
    for fact in ("<td>60.5</td>", "<td>-20.0</td>", "<td>+20.0</td>", "<td>0.8</td>", "<td>2 students</td>"):
        assert fact in shown["text/html"]
    assert "Welch t interval" in shown["text/html"]
    assert "unknown" in shown["text/html"]
    stored = json.loads(json.dumps(shown[claims.MIME], allow_nan=False))
    assert [row["verdict"] for row in stored["verdicts"]] == [FAILS, OPEN]
    (told,) = stored["sentences"]
    assert told["verdict"] == OPEN
    assert told["text"].startswith("digits, datm, IPC 10, noise rate 0.8: students of the set that it began as reach")
    assert "those of the distilled one 60.0 %: +20.0 points, 95 % interval unknown" in told["text"]


def test_where_no_set_was_evaluated_before_its_first_update_the_headline_says_so():
    found = claims.matching(pd.DataFrame([cell([40], [60], method="random")]))
    assert claims.headline(found, claims.matching).startswith("No distilled set here was also evaluated")
