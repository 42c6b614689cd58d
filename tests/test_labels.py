"""What is said of the labels of distilled sets."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from outcomes import conditions, distilled, outcome
from scipy import stats

from ddlnl import datasets, labels, noise, rcig_evaluation, transitions
from ddlnl.errors import InputError

FLIPPED = np.array([[60, 40, 0], [0, 100, 0], [0, 0, 100]])  # class 0 becomes 1 with rate 0.4
EVEN = np.full((3, 3), 1 / 3)


def soft(count: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), count)


def row_of(*found) -> pd.Series:
    return labels.numbers(found).iloc[-1]


def test_the_label_mass_of_a_class_is_the_mean_label_of_its_images():
    given = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.2, 0.8], [0, 0, 1], [0.6, 0, 0.4]]
    expected = [[0.75, 0.25, 0], [0, 0.6, 0.4], [0.3, 0, 0.7]]
    np.testing.assert_allclose(labels.mass(distilled(given, ipc=2)), expected, atol=1e-7)


def test_a_set_whose_images_are_not_ipc_for_every_class_is_refused():
    with pytest.raises(InputError, match="6 images of 3 classes and IPC 1; it must hold"):
        labels.mass(distilled(soft(6, 3), ipc=1))


def test_the_numbers_are_those_of_their_formulas_written_as_loops():
    learned, confusion = (
        soft(8, 4).astype(np.float32).astype(float),
        np.array([[50, 9, 1, 0], [3, 40, 3, 14], [0, 0, 60, 0], [30, 0, 25, 5]]),
    )
    row = row_of(outcome("human:worst", learned, confusion, ipc=2))
    mass = [[sum(learned[2 * c + i][j] for i in range(2)) / 2 for j in range(4)] for c in range(4)]
    entropy = sum(-p * math.log(p) for label in learned for p in label if p > 0) / 8
    target = {0: 1, 1: 3, 3: 0}  # class 2 is never wrong
    wrong = sum(mass[c][j] for c in target for j in range(4) if j != c)
    flip = sum(mass[c][f] for c, f in target.items())
    assert row["entropy_learned"] == pytest.approx(entropy, rel=1e-6)
    assert row["softness_learned"] == pytest.approx(entropy / math.log(4), rel=1e-6)
    assert row["own_learned"] == pytest.approx(sum(mass[c][c] for c in range(4)) / 4, rel=1e-6)
    assert row["flip_learned"] == pytest.approx(flip / 3, rel=1e-6)
    assert row["absorbed_learned"] == pytest.approx(flip / wrong, rel=1e-6)
    assert row["realised_rate"] == pytest.approx(85 / 240)
    assert row["chance"] == pytest.approx(1 / 3)


def test_labels_that_say_what_the_noise_does_absorb_it_wholly_even_ones_by_chance_hard_ones_have_nothing_wrong():
    noisy = "asymmetric:0.4"
    follows = row_of(outcome(noisy, FLIPPED / 100, FLIPPED))
    assert (follows["absorbed_learned"], follows["flip_learned"]) == pytest.approx((1, 0.4))
    for number in ("entropy", "own", "flip", "absorbed"):
        assert follows[f"{number}_learned"] == pytest.approx(follows[f"{number}_transition"], abs=1e-6)
    even = row_of(outcome(noisy, EVEN, FLIPPED))
    assert even["absorbed_learned"] == pytest.approx(even["chance"])
    assert even["softness_learned"] == pytest.approx(1)
    hard = row_of(outcome(noisy, np.eye(3), FLIPPED))
    assert (hard["entropy_learned"], hard["own_learned"], hard["flip_learned"]) == (0, 1, 0)
    assert math.isnan(hard["absorbed_learned"])


def test_the_reference_for_random_images_is_the_mean_transition_row_of_images_with_that_observed_label():
    train = noise.corrupt(datasets.load("digits").train, "asymmetric:0.6", seed=1)
    found = outcome("asymmetric:0.6", np.eye(10), noise.confusion(train))
    np.testing.assert_allclose(found.transition, noise.realised_transition(train))
    for label in range(10):
        drawn = found.transition[train.clean[train.observed == label]]
        np.testing.assert_allclose(found.random[label], drawn.mean(0))


def test_the_flips_of_asymmetric_noise_are_those_of_the_dataset_and_symmetric_noise_has_none():
    data = datasets.load("digits").train
    for spec, flips in (("asymmetric:0.4", transitions.DIGITS), ("symmetric:0.4", {}), ("clean", {})):
        train = noise.corrupt(data, spec)
        found = outcome(spec, np.eye(10), noise.confusion(train)).flips
        assert dict(zip(*map(np.ndarray.tolist, found), strict=True)) == flips
    symmetric = row_of(outcome("symmetric:0.4", soft(3, 3), FLIPPED))
    assert symmetric[["flip_learned", "absorbed_learned", "flip_transition"]].isna().all()


def test_the_same_entries_of_the_clean_set_of_the_same_seed_stand_beside_the_absorbed_share():
    clean = [outcome("clean", soft(3, 3, seed), 100 * np.eye(3), seed=seed) for seed in (0, 1)]
    noisy = outcome("asymmetric:0.4", soft(3, 3, 5), FLIPPED, seed=1)
    row = row_of(*clean, noisy)
    expected = labels.mass(clean[1].small)[0]
    assert row["flip_clean"] == pytest.approx(expected[1])
    assert row["absorbed_clean"] == pytest.approx(expected[1] / expected[1:].sum())
    assert math.isnan(row_of(clean[0], noisy)["absorbed_clean"])


def test_the_set_before_the_first_update_and_its_wrong_images_are_counted_where_they_are_known():
    known = outcome("symmetric:0.4", np.eye(3), FLIPPED, initial=EVEN, meta={"wrong_labels": 2})
    row = row_of(known)
    assert (row["own_initial"], row["entropy_initial"]) == pytest.approx((1 / 3, math.log(3)))
    assert row["wrong_start"] == pytest.approx(2 / 3)
    assert row_of(outcome("symmetric:0.4", np.eye(3), FLIPPED))[["own_initial", "wrong_start"]].isna().all()


def test_free_labels_have_no_mass_and_are_described_by_their_largest_entries():
    free = [[3, 2, -4], [0, -3, -1], [0.5, 5, 1], [-1, 0, 0], [1, 1, 2], [9, 0, 0]]
    kinds = {"ipc": 2, "method": "rcig", "protocol": rcig_evaluation.Protocol()}
    clean = outcome("clean", np.eye(3).repeat(2, 0), np.eye(3), **kinds)
    noisy = outcome("asymmetric:0.4", free, FLIPPED, initial=np.eye(3).repeat(2, 0) - 1 / 3, **kinds)
    row = labels.numbers([clean, noisy]).iloc[1]
    assert row[[f"{name}_learned" for name in ("entropy", "softness", "own", "flip", "absorbed")]].isna().all()
    assert row[["own_initial", "own_clean", "entropy_initial"]].isna().all()
    assert row["top_learned"] == pytest.approx(5 / 6)
    assert row["top_initial"] == row["top_clean"] == 1
    sources, targets = noisy.flips
    others = np.array(free)
    others[np.arange(6), np.repeat(np.arange(3), 2)] = -9
    hits = [
        others[image].argmax() == to for of, to in zip(sources, targets, strict=True) for image in (2 * of, 2 * of + 1)
    ]
    assert row["second_learned"] == np.mean(hits) == 0.5
    assert math.isnan(row["second_initial"])  # all others are equal


def test_averages_are_over_seeds_with_their_t_interval_and_one_seed_has_none():
    found = [outcome("human:worst", soft(3, 3, seed), FLIPPED, seed=seed) for seed in range(4)]
    single, row = labels.numbers(found), labels.averages(labels.numbers(found)).iloc[0]
    low, high = stats.t.interval(0.95, 3, single["own_learned"].mean(), stats.sem(single["own_learned"]))
    assert row["own_learned"] == pytest.approx(single["own_learned"].mean())
    assert row["error_own"] == pytest.approx((high - low) / 2)
    assert row["seeds"] == 4
    assert math.isnan(labels.averages(labels.numbers(found[:1])).iloc[0]["error_own"])


def test_one_figure_shows_one_method_and_ipc_and_the_first_seed_of_every_noise():
    many = [
        outcome(spec, soft(3 * ipc, 3), FLIPPED, ipc=ipc, seed=seed)
        for seed in (1, 0)
        for spec in ("clean", "human:worst")
        for ipc in (1, 2)
    ]
    groups = labels.first_seeds(many)
    assert [[one.cell.noise for one in group] for group in groups] == [["clean", "human:worst"]] * 2
    assert [{(one.cell.ipc, one.cell.seed) for one in group} for group in groups] == [{(1, 0)}, {(2, 0)}]


def test_what_is_shown_has_every_condition_its_formulas_and_says_how_many_seeds(monkeypatch):
    shown = []
    monkeypatch.setattr(labels, "display", lambda data, raw: shown.append(data))
    found = conditions(human=1)
    labels.show(found)
    labels.show([*found, *(outcome("clean", np.eye(10), np.eye(10), seed=seed) for seed in (1, 2))])
    first, second = (data["text/html"] for data in shown)
    assert "One seed: the spread between runs is not covered" in first
    assert "Means over 3 seeds" in second
    for one in found:
        assert first.count(f"<td>{one.cell.noise.replace(':', ' ')}</td>") == 1 + bool(one.flips[0].size)
    assert "1 / (K - 1)" in first
    assert "asymmetric 0.8" in shown[0]["text/plain"]
