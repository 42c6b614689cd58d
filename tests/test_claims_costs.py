"""What a distilled set costs and gives away (claims C5 and C6)."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import records

from ddlnl import claims, membership
from ddlnl.errors import InputError


def timed(train: float, full: float = 8.0, seeds: int = 3, spread: float = 0.05) -> pd.DataFrame:
    """Records with two checkpoints and five students: 6 s of experts, 3 s to distil, so many seconds per training."""
    table = records(rates=(0.4,), ipcs=(10,), seeds=seeds).query("method in ('dance', 'full')").reset_index(drop=True)
    source = np.random.default_rng(0)
    whole = table["method"] == "full"
    table["checkpoints"] = [["full"] if one else ["iteration-0", "iteration-60"] for one in whole]
    each = np.where(whole, full, train) * np.exp(source.normal(0, spread, len(table)))
    table["seconds_evaluate"] = 5 * each * np.where(whole, 1, 2)
    return table.assign(seconds_experts=6.0 * ~whole, seconds_distil=3.0 * ~whole)


def test_the_break_even_number_is_the_cost_of_distilling_over_what_a_training_saves():
    (row,) = claims.costs(timed(train=2.0, spread=1e-4)).itertuples()
    assert (row.distil, row.train, row.train_full) == pytest.approx((9, 2, 8), rel=1e-3)
    assert row.break_even == 2  # 9 s over 6 s
    assert row.speedup == pytest.approx(4, rel=1e-3)
    assert row.verdict == "holds"


def test_the_interval_of_the_speedup_is_the_t_interval_of_its_logarithm():
    table = timed(train=2.0)
    (row,) = claims.costs(table).itertuples()
    train = {one: table[table["method"] == one]["seconds_evaluate"].to_numpy() for one in ("dance", "full")}
    logs = np.log(train["full"] / (train["dance"] / 2))
    expected = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert (row.low, row.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    assert row.n == 3


def test_seconds_beside_training_do_not_count_and_records_that_do_not_tell_them_apart_are_left_out():
    table = timed(train=2.0, spread=1e-4)
    expected = claims.costs(table)
    rcig = table["method"] == "dance"
    table = table.assign(method=np.where(rcig, "rcig", "full"), seconds_beside=np.where(rcig, 5 * 2.5 * 2.0, 40.0))
    (row,) = claims.costs(table).itertuples()
    assert (row.method, row.train, row.speedup) == ("rcig", expected["train"].item(), expected["speedup"].item())
    for before in (
        table.assign(seconds_beside=table["seconds_beside"].where(rcig)),
        table.drop(columns="seconds_beside"),
    ):
        assert claims.costs(before).empty
        assert claims.headline(claims.costs(before), claims.costs).startswith("The records do not tell")


def test_training_that_saves_nothing_never_pays():
    (row,) = claims.costs(timed(train=12.0)).itertuples()
    assert row.verdict == "does not hold"
    assert math.isinf(row.break_even)
    assert "distilling never pays" in claims.headline(claims.costs(timed(train=12.0)), claims.costs)


def test_times_of_one_run_or_of_different_devices_do_not_decide_the_cost():
    assert claims.costs(timed(2.0, seeds=1))["verdict"].item() == "not enough data"
    table = timed(2.0)
    table.loc[table["method"] == "full", "device"] = "NVIDIA H200"
    assert claims.costs(table).empty


def test_shown_costs_are_strict_json_even_where_distilling_never_pays(monkeypatch):
    bundle = {}
    monkeypatch.setattr(claims._show, "display", lambda data, raw: bundle.update(data))
    claims.show(claims.costs(timed(train=12.0)), claims.costs)
    stored = json.loads(json.dumps(bundle[claims.MIME], allow_nan=False))
    assert stored["verdicts"][0]["break_even"] is None
    assert stored["sentences"][0]["verdict"] == "does not hold"
    assert "is the number of trainings after which distilling has" in bundle["text/html"]


LOSS, NEARNESS = membership.LOSS, membership.NEARNESS
FULL = [0.70, 0.72, 0.73]


def attacked(aucs: dict[str, list[float]], method: str = "dance", found: float | None = None) -> pd.DataFrame:
    """What attacks reach on a distilled set, seed by seed, beside `FULL`: as AUC, and `found` of the full set's 10 %
    of members at 1 % false alarms; others are too few for 0.1 %."""
    sides = [(method, 10, attack, each, found) for attack, each in aucs.items()] + [("full", 0, LOSS, FULL, 0.1)]
    return pd.DataFrame(
        {"dataset": "digits", "noise": "clean", "method": name, "ipc": ipc, "seed": seed, "attack": attack}
        | {"auc": auc, "tpr_0.001": None, "tpr_0.01": share and share + 0.001 * seed**2}
        for name, ipc, attack, each, share in sides
        for seed, auc in enumerate(each)
    )


@pytest.mark.parametrize(
    ("distilled", "verdict"),
    [
        ([0.51, 0.52, 0.51], "holds"),
        ([0.91, 0.92, 0.93], "does not hold"),
        ([0.60, 0.90, 0.75], "not enough data"),
        ([0.51], "not enough data"),
    ],
)
def test_membership_is_better_kept_where_the_attack_is_weaker_on_every_seed(distilled, verdict):
    for row in claims.privacy(attacked({LOSS: distilled})).itertuples():
        assert (row.measure, row.verdict, row.n) == ("auc", verdict, len(distilled))
        assert row.less == pytest.approx(100 * (np.mean(FULL[: len(distilled)]) - np.mean(distilled)))


def test_the_claim_is_judged_by_the_attack_that_is_stronger_on_each_seed():
    both = {LOSS: [0.51, 0.52, 0.60], NEARNESS: [0.91, 0.93, 0.40]}
    found = claims.privacy(attacked(both)).set_index("attack")
    assert found["verdict"].tolist() == ["holds", "not enough data", "not enough data"]
    assert found["reached"].tolist() == pytest.approx([*(np.mean(each) for each in both.values()), 0.8133], abs=1e-4)
    verdicts = claims.privacy(attacked({LOSS: [0.51, 0.52, 0.52], NEARNESS: [0.91, 0.92, 0.92]}))
    assert verdicts["verdict"].tolist() == ["holds", "does not hold", "does not hold"]
    line = claims.headline(verdicts, claims.privacy)
    assert "the strongest attack has an AUC of 0.917 against 0.717 on the full noisy set, 20.0 points more" in line
    assert len(line.splitlines()) == 1


def test_a_set_whose_images_alone_can_be_attacked_is_judged_by_that_attack():
    found = claims.privacy(attacked({NEARNESS: [0.51, 0.52, 0.51]}, "rcig"))
    assert found["attack"].tolist() == [NEARNESS, "the strongest"]
    assert found["verdict"].tolist() == ["holds", "holds"]


def test_members_found_at_few_false_alarms_are_a_statement_beside_the_area():
    verdicts = claims.privacy(attacked({LOSS: [0.60, 0.90, 0.75]}, found=0.02))
    (row,) = verdicts[(verdicts["attack"] == "the strongest") & (verdicts["measure"] == "tpr_0.01")].itertuples()
    assert (row.verdict, row.n) == ("not enough data", 3)  # 8 points less in every seed: no spread to judge by
    table = attacked({LOSS: [0.60, 0.90, 0.75]}, found=0.02)
    table.loc[table["method"] == "full", "tpr_0.01"] += [0.0, 0.001, 0.0]
    verdicts = claims.privacy(table)
    assert set(zip(verdicts["measure"], verdicts["verdict"], strict=True)) == {
        ("auc", "not enough data"),
        ("tpr_0.01", "holds"),
    }
    assert "is right on 2.2% of the members against 10.2% at 1.0% false alarms" in claims.headline(
        verdicts, claims.privacy
    )
    (shown,) = claims._privacy.readable(verdicts)
    assert (shown["found at 0.1% false alarms"] == "too few others").all()
    assert (
        shown["found at 1.0% false alarms"].str.fullmatch(r"2.2%, full set 10.2%: 8.0 less \(\S+ to \S+\), holds").all()
    )


def test_without_an_attack_on_the_full_set_there_is_nothing_to_compare_with():
    alone = attacked({LOSS: [0.5, 0.6]}).query("method != 'full'")
    assert claims.privacy(alone)["verdict"].eq("not enough data").all()
    assert "no attack on the full set" in claims.headline(claims.privacy(alone), claims.privacy)


def test_figures_of_privacy_without_a_column_or_with_a_cell_twice_are_refused():
    figures = attacked({LOSS: [0.5, 0.5]})
    with pytest.raises(InputError, match="lack auc; they need the columns dataset, noise"):
        claims.privacy(figures.drop(columns="auc"))
    with pytest.raises(InputError, match="two rows of one cell and attack"):
        claims.privacy(pd.concat([figures, figures]))
