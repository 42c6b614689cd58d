"""RCIG within a given time: when it is evaluated, that a killed measurement goes on, and what is refused."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import pytest

from ddlnl import rcig_curve, rcig_evaluation
from ddlnl.errors import InputError
from ddlnl.rcig import Rcig
from ddlnl.store import Store

QUICK = rcig_evaluation.Protocol(depth=1, width=4, steps=4, warmup=2, augmentation="flip")
SMALL = {"minutes": 1.5 / 60, "students": 2, "dataset": "digits", "width": 4, "protocol": QUICK}


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Every iteration takes an eighth of a second, so that there are twelve."""
    calls = itertools.count()
    monkeypatch.setattr(rcig_curve.time, "process_time", lambda: next(calls) / 8)


def test_both_runs_are_evaluated_before_the_first_iteration_along_the_way_and_when_the_time_is_used_up(tmp_path):
    table = rcig_curve.measure(**SMALL, store_dir=tmp_path)
    assert list(table["run"]) == ["augmented", "not augmented"] * 4
    assert list(table["iterations"]) == [0, 0, 3, 3, 6, 6, 12, 12]
    assert list(60 * table["minutes"]) == [number / 8 for number in table["iterations"]]
    assert list(table["students"]) == [1] * 6 + [2] * 2
    assert table["accuracy"].between(0, 100).all()
    assert table["std"].notna().sum() == 2
    assert rcig_curve.measure(**SMALL, store_dir=tmp_path).equals(table)


@pytest.mark.parametrize("interval", [0.0, 20.0])
def test_a_measurement_that_is_killed_while_it_distils_and_while_it_evaluates_gives_the_same_table(
    interval, tmp_path, monkeypatch
):
    whole = rcig_curve.measure(**SMALL, store_dir=tmp_path / "whole")
    iterate, train, progress = Rcig.iterate, rcig_evaluation.train_students, Store.progress
    began, evaluated = [], []

    def killed(at, seen, original):
        def call(*given):
            seen.append(given[-1])
            if len(seen) == at:
                raise KeyboardInterrupt
            return original(*given)

        return call

    monkeypatch.setattr(Store, "progress", lambda store, key: progress(store, key, interval=interval))
    monkeypatch.setattr(Rcig, "iterate", killed(8, began, iterate))
    monkeypatch.setattr(rcig_evaluation, "train_students", killed(3, evaluated, train))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            rcig_curve.measure(**SMALL, store_dir=tmp_path / "killed")
    assert began[8] == (7 if interval == 0 else 0)
    assert rcig_curve.measure(**SMALL, store_dir=tmp_path / "killed").equals(whole)
    assert len(evaluated) == 8 + 1
    assert not list((tmp_path / "killed").glob("progress/*"))


def test_a_damaged_set_of_the_measurement_is_set_aside_and_made_again(tmp_path):
    whole = rcig_curve.measure(**SMALL, store_dir=tmp_path)
    for kind in ("artefacts", "records/curve"):
        (first, *_) = sorted((tmp_path / kind).iterdir())
        first.write_bytes(first.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="moved to"):
        assert rcig_curve.measure(**SMALL, store_dir=tmp_path).equals(whole)


@pytest.mark.parametrize(("minutes", "students"), [(0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (1, 0), (1, 1.5)])
def test_a_time_or_a_number_of_students_that_cannot_be_is_refused_before_any_work(minutes, students, tmp_path):
    with pytest.raises(InputError, match="it must be"):
        rcig_curve.measure(minutes, students, store_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_table(tmp_path, monkeypatch, capsys):
    table = pd.DataFrame({"run": ["augmented"], "accuracy": [53.456]})
    monkeypatch.setattr(rcig_curve, "measure", lambda *given: table)
    rcig_curve.main([str(tmp_path / "curve.csv"), "--minutes", "1"])
    assert (tmp_path / "curve.csv").read_text() == "run,accuracy\naugmented,53.46\n"
    assert "53.5" in capsys.readouterr().out
