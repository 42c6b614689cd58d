"""RCIG within a given time: when it is evaluated, that a killed measurement goes on, and what is refused."""

from __future__ import annotations

import pandas as pd
import pytest

from ddlnl import rcig_curve, rcig_evaluation
from ddlnl.errors import InputError
from ddlnl.rcig import Rcig
from ddlnl.store import Store

QUICK = rcig_evaluation.Protocol(depth=1, width=4, steps=4, warmup=2, augmentation="flip")
SMALL = {"minutes": 0.02, "students": 2, "dataset": "digits", "width": 4, "protocol": QUICK}


def test_both_runs_are_evaluated_before_the_first_iteration_along_the_way_and_when_the_time_is_used_up(tmp_path):
    table = rcig_curve.measure(**SMALL, store_dir=tmp_path)
    assert list(table["run"]) == ["augmented", "not augmented"] * 4
    assert list(table["students"]) == [1] * 6 + [2] * 2
    assert list(table["iterations"][:2]) == [0, 0]
    assert table["iterations"].is_monotonic_increasing
    assert table["iterations"].nunique() == 4
    assert table["accuracy"].between(0, 100).all()
    assert table["std"].notna().sum() == 2
    assert rcig_curve.measure(**SMALL, store_dir=tmp_path).equals(table)


def test_a_killed_measurement_goes_on_with_the_time_that_was_used_and_evaluates_nothing_twice(tmp_path, monkeypatch):
    iterate, train, began, evaluated = Rcig.iterate, rcig_evaluation.train_students, [], []

    def killed(run: Rcig, iteration: int) -> None:
        began.append(iteration)
        if len(evaluated) == 4 and len(began) > 3:
            raise KeyboardInterrupt
        iterate(run, iteration)

    monkeypatch.setattr(Rcig, "iterate", killed)
    monkeypatch.setattr(Store, "progress", lambda store, key: _progress(store, key, interval=0.0))
    monkeypatch.setattr(rcig_evaluation, "train_students", lambda *given: evaluated.append(1) or train(*given))
    with pytest.raises(KeyboardInterrupt):
        rcig_curve.measure(**SMALL, store_dir=tmp_path)
    last = began[-1]
    monkeypatch.setattr(Rcig, "iterate", lambda run, iteration: began.append(iteration) or iterate(run, iteration))
    began.clear()
    table = rcig_curve.measure(**SMALL, store_dir=tmp_path)
    assert began[0] == last
    assert len(evaluated) == 8
    assert list(table["run"]) == ["augmented", "not augmented"] * 4
    assert table["minutes"].is_monotonic_increasing


_progress = Store.progress


@pytest.mark.parametrize("minutes", [0, -1.0, float("nan")])
def test_a_time_that_is_not_positive_is_refused(minutes, tmp_path):
    with pytest.raises(InputError, match="it must be positive"):
        rcig_curve.measure(minutes, store_dir=tmp_path)


def test_the_command_writes_the_table(tmp_path, monkeypatch, capsys):
    table = pd.DataFrame({"run": ["augmented"], "accuracy": [53.456]})
    monkeypatch.setattr(rcig_curve, "measure", lambda *given: table)
    rcig_curve.main([str(tmp_path / "curve.csv"), "--minutes", "1"])
    assert (tmp_path / "curve.csv").read_text() == "run,accuracy\naugmented,53.46\n"
    assert "53.5" in capsys.readouterr().out
