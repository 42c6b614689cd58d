"""What students' mistakes say: noise that they absorbed, classes that they lost (claims C2 and C4)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic import records

from ddlnl import claims, noise, transitions
from ddlnl.errors import InputError

ERRORS = transitions.symmetric(0.1, 10)  # what students confuse without any noise


def counts(rates: np.ndarray) -> list[list[int]]:
    return np.rint(10000 * np.clip(rates, 0, 1)).astype(int).tolist()


def pairwise(rates: np.ndarray) -> np.ndarray:
    """How often what of the class of the row became that of the column, where it became one of the two."""
    return np.array([[b / (rates[c, c] + b) if b else 0 for b in row] for c, row in enumerate(rates)])


def following(errors: np.ndarray, matrix: np.ndarray, share: float) -> np.ndarray:
    """A confusion whose pairwise shares are those of `errors` and this share of those of the noise."""
    wrong = pairwise(errors) + share * pairwise(matrix)
    odds = np.where(np.eye(len(wrong)), 1, wrong / (1 - np.where(np.eye(len(wrong)), 0, wrong)))
    return odds / odds.sum(1, keepdims=True)


def with_confusion(
    spec: str, share: dict[str, float], seeds: int = 3, spread: float = 0.02, errors: np.ndarray = ERRORS
) -> pd.DataFrame:
    """Records of clean labels and one noise whose students absorb this share of it, by method, up to a spread."""
    table = records(rates=(0.0, 0.4), ipcs=(10,), seeds=seeds).query("method in @share").copy()
    noisy = table["rate"] > 0
    parsed = noise.parse(spec)
    table.loc[noisy, ["noise", "rate"]] = [spec, parsed.rate]
    source = np.random.default_rng(0)
    matrix = noise.transition_matrix(parsed, "digits", 10)
    drawn = source.normal(0, spread, len(table))
    table["confusion"] = [
        counts(following(errors, matrix, share[method] + extra) if noise_here else errors)
        for method, noise_here, extra in zip(table["method"], noisy, drawn, strict=True)
    ]
    return table


def mistaken(table: pd.DataFrame, change) -> pd.DataFrame:
    """The same records after a change of the rates at which students under noise confuse classes."""
    noisy = table["rate"] > 0
    table.loc[noisy, "confusion"] = table.loc[noisy, "confusion"].map(lambda one: counts(change(np.array(one) / 10000)))
    return table


@pytest.mark.parametrize("spec", ["asymmetric:0.4", "asymmetric:0.2", "pairflip:0.4"])
@pytest.mark.parametrize(("share", "whole"), [(0.7, 0.4), (0.0, 1.0), (0.3, 0.0)])
def test_the_share_of_the_noise_that_students_repeat_comes_out_of_their_confusion(spec, share, whole):
    made = with_confusion(spec, {"dance": share, "full": whole}, spread=0.01)
    found = claims.absorbed(made, spec.partition(":")[0]).set_index("method")
    assert found.loc["dance", "absorbed"] == pytest.approx(share, abs=0.02)
    assert found.loc["dance", "full"] == pytest.approx(whole, abs=0.02)
    assert found.loc["dance", "low"] < found.loc["dance", "absorbed"] < found.loc["dance", "high"]


@pytest.mark.parametrize(("share", "verdict"), [(0.7, "holds"), (0.0, "does not hold"), (0.1, "not enough data")])
def test_noise_counts_as_absorbed_where_the_interval_is_above_a_tenth_of_it(share, verdict):
    (row,) = claims.absorbed(with_confusion("asymmetric:0.4", {"dance": share})).itertuples()
    assert row.verdict == verdict
    assert (row.n, row.rule) == (3, "last")


@pytest.mark.parametrize("lost", [0.1, 0.4, 0.8])
def test_students_who_are_only_worse_than_those_of_clean_labels_absorbed_nothing(lost):
    table = with_confusion("asymmetric:0.4", {"dance": 0.0}, spread=0)
    found = claims.absorbed(mistaken(table, lambda rates: (1 - lost) * rates + lost / 10))
    assert found["absorbed"].item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_weak_students_who_mix_up_some_classes_anyway_are_not_taken_for_students_who_absorbed(seed):
    errors = np.random.default_rng(seed).dirichlet(np.ones(10), size=10) + 4 * np.eye(10)
    table = with_confusion("asymmetric:0.4", {"dance": 0.0}, spread=0, errors=errors / errors.sum(1, keepdims=True))
    found = claims.absorbed(mistaken(table, lambda rates: 0.4 * rates + 0.06))
    assert found["absorbed"].item() < 0.1


def test_errors_that_do_not_follow_the_noise_are_not_absorbed_noise():
    table = with_confusion("asymmetric:0.4", {"dance": 0.0}, spread=0)
    elsewhere = np.eye(10)[np.roll(np.arange(10), 3)] - np.eye(10)  # no class is flipped three classes on
    found = claims.absorbed(mistaken(table, lambda rates: rates + 0.2 * elsewhere))
    assert -0.1 < found["absorbed"].item() <= 0


@pytest.mark.parametrize("spec", ["symmetric:0.4", "symmetric:0.8"])
def test_noise_that_spreads_wrong_labels_evenly_has_no_pattern_and_gets_no_number_however_much_students_lose(spec):
    table = with_confusion(spec, {"dance": 0.7, "full": 0.4})
    drawn = np.random.default_rng(0).dirichlet(np.ones(10), size=10)  # realised matrices are never quite even
    found = claims.absorbed(table, "symmetric", {("digits", spec, seed): drawn for seed in range(3)})
    assert found["absorbed"].isna().all()
    assert set(found["verdict"]) == {"not enough data"}
    assert "spread evenly, so there is no pattern" in claims.headline(found, claims.absorbed)


def test_the_headline_is_about_the_highest_rate_at_which_most_labels_are_still_right():
    low, high = (with_confusion(f"asymmetric:{rate}", {"dance": 0.7}) for rate in (0.4, 0.8))
    found = claims.absorbed(pd.concat([low, high[high["rate"] > 0]]))
    assert set(found["rate"]) == {0.4, 0.8}
    assert "asymmetric 0.4: students absorbed" in claims.headline(found, claims.absorbed)
    assert "asymmetric 0.8: students absorbed" in claims.headline(claims.absorbed(high), claims.absorbed)


def test_without_a_distilled_set_under_the_noise_the_headline_says_so():
    table = with_confusion("symmetric:0.4", {"dance": 0.7})
    assert claims.headline(claims.absorbed(table), claims.absorbed).startswith("No distilled set was evaluated")


def test_noise_without_a_nominal_matrix_takes_the_one_it_is_given():
    table = with_confusion("asymmetric:0.4", {"dance": 0.5}, spread=1e-3)
    table["noise"] = table["noise"].replace("asymmetric:0.4", "human:worst")
    assert claims.absorbed(table, "human")["verdict"].item() == "not enough data"
    matrix = noise.transition_matrix(noise.parse("asymmetric:0.4"), "digits", 10)
    given = {("digits", "human:worst", seed): matrix for seed in range(3)}
    assert claims.absorbed(table, "human", given)["absorbed"].item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("without", ["confusion", "clean labels", "a second seed"])
def test_without_what_it_needs_absorption_is_not_decided(without):
    table = with_confusion("asymmetric:0.4", {"dance": 0.7})
    table = {
        "confusion": table.drop(columns="confusion"),
        "clean labels": table[table["noise"] != "clean"],
        "a second seed": table[table["seed"] == 0],
    }[without]
    (row,) = claims.absorbed(table).itertuples()
    assert row.verdict == "not enough data"
    assert np.isnan(row.low)


def unbalanced(
    tail: float, seeds: int = 3, spread: float = 0.005, harder: float = 0.0, random: float = 0.0
) -> pd.DataFrame:
    """Records of balanced sets and of longtail:10. Distilled sets are worse than the full set by 0.1, in the second
    half of the classes by `harder` more, and under imbalance there by `tail` + harder. Random sets are worse than the
    full one by 0.3, and by `random` more in that half under imbalance."""
    rows = []
    source = np.random.default_rng(0)
    for imbalance in ("none", "longtail:10"):
        table = records(rates=(0.0,), ipcs=(10,), seeds=seeds).query("method in ('dance', 'random', 'full')").copy()
        table["imbalance"] = imbalance
        rare = imbalance != "none"
        worse = {
            "dance": np.repeat([0.1, (tail if rare else 0.1) + harder], 5),
            "random": np.repeat([0.3, 0.3 + random * rare], 5),
            "full": 0,
        }
        table["confusion"] = [
            counts(np.diag(0.95 - worse[method] - (method != "full") * source.normal(0, spread, 10)))
            for method in table["method"]
        ]
        for row in table["confusion"]:
            for label, count in enumerate(row):
                count[(label + 1) % 10] = 10000 - sum(count)
        rows.append(table)
    return pd.concat(rows)


@pytest.mark.parametrize("harder", [0.0, 0.15])
@pytest.mark.parametrize(("tail", "verdict"), [(0.4, "holds"), (0.02, "does not hold"), (0.1, "not enough data")])
def test_rare_classes_are_lost_where_imbalance_moves_them_behind_and_not_where_they_are_hard_anyway(
    tail, verdict, harder
):
    (row,) = claims.tails(unbalanced(tail, harder=harder)).itertuples()
    assert (row.imbalance, row.verdict) == ("longtail:10", verdict)
    assert row.lost == pytest.approx(100 * (tail - 0.1), abs=1)
    assert (row.head, row.tail) == pytest.approx((-10, -100 * (tail + harder)), abs=1)
    assert (row.gap, row.gap_balanced) == pytest.approx((100 * (tail + harder - 0.1), 100 * harder), abs=1)
    assert row.gap - row.gap_balanced == pytest.approx(row.lost)


def test_random_images_of_the_same_number_can_be_the_reference_of_what_rare_classes_lose():
    table = unbalanced(0.4, random=0.2)
    table = pd.concat([table, table[table["method"] == "random"].assign(ipc=50, confusion=None)])
    (row,) = claims.tails(table, reference="random").itertuples()
    assert row.lost == pytest.approx(30 - 20, abs=1)
    assert row.head == pytest.approx(20, abs=1)
    assert "against random imbalance makes rare classes lose" in claims.headline(
        claims.tails(table, reference="random"), claims.tails
    )
    with pytest.raises(InputError, match="'rndom' is not in the table; it has dance, random, full"):
        claims.tails(table, reference="rndom")


@pytest.mark.parametrize("without", ["confusion", "a second seed", "the full set", "balanced sets", "a common seed"])
def test_without_what_it_needs_the_loss_of_rare_classes_is_not_decided(without):
    table = unbalanced(0.4)
    table = {
        "confusion": table.drop(columns="confusion"),
        "a second seed": table[table["seed"] == 0],
        "the full set": table[table["method"] != "full"],
        "balanced sets": table[table["imbalance"] != "none"],
        "a common seed": table[(table["imbalance"] == "none") == (table["seed"] > 1)],
    }[without]
    found = claims.tails(table)
    assert set(found["verdict"]) == {"not enough data"}
    assert without == "a second seed" or "is not in the records" in claims.headline(found, claims.tails)


def test_balanced_sets_alone_say_nothing_about_rare_classes():
    table = unbalanced(0.4)
    found = claims.tails(table[table["imbalance"] == "none"])
    assert found.empty
    assert claims.headline(found, claims.tails).startswith("No distilled set was made from imbalanced images")


def test_every_noise_has_a_sentence_about_its_strongest_imbalance():
    table = unbalanced(0.4)
    stronger = table[table["imbalance"] != "none"].assign(imbalance="longtail:50")
    clean = pd.concat([table, stronger])
    both = pd.concat([clean, clean.assign(noise="symmetric:0.4", rate=0.4)])
    lines = claims.headline(claims.tails(both), claims.tails).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        f"digits, dance, IPC 10, longtail 50, {noise}" for noise in ("clean", "symmetric 0.4")
    ]


def test_sentences_are_about_distillers_under_the_most_noise_and_the_strongest_imbalance():
    line = claims.headline(
        claims.absorbed(with_confusion("asymmetric:0.4", {"dance": 0.7, "full": 0.4})), claims.absorbed
    )
    assert line.startswith("digits, dance, IPC 10, asymmetric 0.4: students absorbed 7")
    assert "\n" not in line
    line = claims.headline(claims.tails(unbalanced(0.4)), claims.tails)
    start = "digits, dance, IPC 10, longtail 10, clean: against the full noisy set imbalance makes rare classes lose "
    assert line.startswith(start)
    assert "points more than frequent ones" in line
