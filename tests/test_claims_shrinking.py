"""Claim C2, first half: what distilling gains under noise with a pattern, against noise without one."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import record

from ddlnl import claims

SHARES = (0.0, 0.2, 0.4, 0.6)  # of wrong labels, under symmetric noise
CURVE = {0.0: -12.0, 0.2: -4.0, 0.4: 6.0, 0.6: 9.0}  # what distilling gains there, in points


def planted(
    change: float, wrong: float = 0.25, seeds: int = 3, spread: float = 0.5, spec: str = "asymmetric:0.5"
) -> pd.DataFrame:
    """Records whose gain follows `CURVE`, moved by a seed, and lies this far from it under flips that make that share
    of the labels wrong, up to a spread."""
    source = np.random.default_rng(0)
    rows = []
    for seed, moved in enumerate(source.normal(0, 5, seeds)):
        here = float(np.interp(wrong, SHARES, list(CURVE.values()))) + change + source.normal(0, spread)
        gains = [("clean" if not share else f"symmetric:{share}", share, gain) for share, gain in CURVE.items()]
        for noise, share, gain in [*gains, (spec, wrong, here)]:
            full = source.uniform(0.4, 0.8)
            for method, ipc, accuracy in (("full", 0, full), ("dance", 10, full + (gain + moved) / 100)):
                row = record("cifar10", method, share, ipc, seed, 2, 0.01)
                rows.append(row | {"noise": noise, "realised_rate": share, "accuracy_last": accuracy})
                rows[-1]["rate"] = float(noise.partition(":")[2] or 0)
    return pd.DataFrame(rows)


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.2, 0.25, 0.5, 0.6])
@pytest.mark.parametrize("change", [-8.0, 3.0])
def test_the_change_is_what_the_gain_lacks_to_that_of_symmetric_noise_with_as_many_wrong_labels(wrong, change):
    (row,) = claims.shrinks(planted(change, wrong, spread=1e-6)).itertuples()
    assert row.change == pytest.approx(change, abs=1e-3)
    assert row.gain - row.gain_symmetric == pytest.approx(row.change)
    assert row.wrong == pytest.approx(wrong)


@pytest.mark.parametrize(("change", "verdict"), [(-8, "holds"), (8, "does not hold"), (0, "not enough data")])
def test_the_benefit_shrinks_where_the_whole_interval_of_the_change_is_below_zero(change, verdict):
    (row,) = claims.shrinks(planted(change)).itertuples()
    assert row.verdict == verdict
    assert row.n == 3


def test_the_interval_is_the_t_interval_over_seeds_of_what_all_four_accuracies_say():
    table = planted(-2, wrong=0.3, seeds=4, spread=3)
    accuracy = 100 * table.set_index(["method", "noise", "seed"])["accuracy_last"]
    gain = accuracy["dance"] - accuracy["full"]
    changes = [
        gain["asymmetric:0.5", seed] - (gain["symmetric:0.2", seed] + gain["symmetric:0.4", seed]) / 2
        for seed in range(4)
    ]
    (row,) = claims.shrinks(table).itertuples()
    expected = stats.ttest_1samp(changes, 0).confidence_interval(0.95)
    assert (row.low, row.high) == pytest.approx(tuple(expected))


@pytest.mark.parametrize(
    "without",
    ["more than one seed", "as much symmetric noise", "any symmetric noise", "the full set", "a common seed"],
)
def test_without_what_it_needs_it_is_not_decided_whether_the_benefit_shrinks(without):
    table = planted(-8)
    flipped = table["noise"] == "asymmetric:0.5"
    table = {
        "more than one seed": table[table["seed"] == 0],
        "as much symmetric noise": planted(-8, wrong=0.7),
        "any symmetric noise": table[flipped],
        "the full set": table[table["method"] != "full"],
        "a common seed": table[flipped == (table["seed"] > 1)],
    }[without]
    assert set(claims.shrinks(table)["verdict"]) <= {"not enough data"}
    ((verdict, _),) = claims._shrinking.sentences(claims.shrinks(table))
    assert verdict == "not enough data"


def test_a_seed_without_one_of_the_four_accuracies_does_not_count():
    table = planted(-8, seeds=4)
    lost = (table["seed"] == 2) & (table["noise"] == "asymmetric:0.5") & (table["method"] == "full")
    (row,) = claims.shrinks(table[~lost]).itertuples()
    assert row.n == 3
    assert row.gain - row.gain_symmetric == pytest.approx(row.change)


def test_what_is_shown_says_both_gains_and_is_strict_json(monkeypatch):
    bundle = {}
    monkeypatch.setattr(claims._show, "display", lambda data, raw: bundle.update(data))
    both = pd.concat([planted(-8), planted(9, 0.4, spec="asymmetric:0.8").query("noise == 'asymmetric:0.8'")])
    claims.show(claims.shrinks(both), claims.shrinks)
    stored = json.loads(json.dumps(bundle[claims.MIME], allow_nan=False))
    (told,) = stored["sentences"]  # both rates are at least 0.5, so the higher one
    assert told["verdict"] == "does not hold"
    assert "asymmetric 0.8: distilled minus full noisy set is" in told["text"]
    assert "more than under symmetric noise with as many wrong labels (" in told["text"]
    assert "The claim that the benefit shrinks" in bundle["text/html"]
    lower = both.replace({"noise": {"asymmetric:0.5": "asymmetric:0.4"}, "rate": {0.5: 0.4}})
    assert "asymmetric 0.4: distilled minus" in claims.headline(claims.shrinks(lower), claims.shrinks)
