"""Membership inference finds planted members, and finds nothing where there is nothing to find."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from small import NETWORK, image_set

from ddlnl import preprocess, privacy, training
from ddlnl.errors import InputError
from ddlnl.training import Recipe


@pytest.fixture(scope="module")
def scores():
    source = np.random.default_rng(0)
    return source.normal(1, 1, 1500), source.normal(0, 1, 2000)


def test_the_area_is_that_of_scikit_learn_and_lies_in_its_interval(scores):
    found = privacy.leakage(*scores, repeats=100)
    truth = np.repeat([1, 0], [1500, 2000])
    assert found.auc == pytest.approx(roc_auc_score(truth, np.concatenate(scores)), abs=1e-12)
    low, high = found.auc_interval
    assert low < found.auc < high
    assert high - low < 0.05
    assert (found.members, found.others) == (1500, 2000)


def test_the_rate_of_found_members_is_that_above_the_threshold_which_so_many_others_pass(scores):
    members, others = scores
    found = privacy.leakage(members, others, repeats=50)
    for rate, passing in ((0.001, 2), (0.01, 20)):
        limit = np.sort(others)[-passing - 1]
        assert found.tpr[rate] == pytest.approx((members > limit).mean())
        low, high = found.tpr_intervals[rate]
        assert low <= found.tpr[rate] <= high


def test_planted_members_are_all_found_and_equal_scores_are_guessing():
    perfect = privacy.leakage(np.ones(10), np.zeros(1000), repeats=10)
    assert perfect.auc == 1
    assert perfect.tpr == {0.001: 1, 0.01: 1}
    blind = privacy.leakage(np.zeros(10), np.zeros(1000), repeats=10)
    assert blind.auc == 0.5
    assert blind.tpr == {0.001: 0, 0.01: 0}


def test_a_leak_of_a_few_members_shows_at_low_rates_though_hardly_in_the_area():
    source = np.random.default_rng(0)
    members, others = source.normal(size=2000), source.normal(size=2000)
    members[:100] = 10
    found = privacy.leakage(members, others, repeats=100)
    assert found.auc < 0.55
    assert found.tpr_intervals[0.001][0] > 0.03


def test_intervals_repeat_with_their_seed(scores):
    first, second = (privacy.leakage(*scores, repeats=20, seed=3) for _ in range(2))
    assert first == second
    assert privacy.leakage(*scores, repeats=20, seed=4).auc_interval != first.auc_interval


def test_an_overfitted_model_gives_its_members_away_by_their_loss_and_a_fresh_one_does_not():
    source = np.random.default_rng(1)
    whole = image_set(per_class=400)
    labels = torch.from_numpy(source.integers(0, 3, len(whole)))  # nothing to learn but the members
    images = preprocess.fit(whole.images, "normalise").apply(preprocess.to_float(whole.images))
    stack = training.initialise(lambda: NETWORK.build(3, 8, 3), [0, 1], torch.device("cpu"))

    def found():
        each = privacy.loss_scores(training.predict(stack, images), labels)
        return privacy.leakage(each[:100], each[100:], repeats=50)

    low, high = found().auc_interval
    assert low < 0.5 < high
    recipe = Recipe(epochs=60, batch_size=20, lr=0.05)
    training.train(stack, images[:100], training.one_hot(labels[:100], 3), recipe, [0, 1])
    assert found().auc_interval[0] > 0.6


def test_loss_scores_are_the_mean_log_probability_of_the_label(scores):
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 0, 2])
    expected = logits.double().log_softmax(2)[:, torch.arange(5), labels].mean(0).numpy()
    np.testing.assert_allclose(privacy.loss_scores(logits, labels), expected)
    np.testing.assert_allclose(
        privacy.loss_scores(logits[0], labels), logits[0].double().log_softmax(1)[range(5), labels]
    )


def test_an_image_that_was_released_as_it_is_has_the_highest_nearness():
    images = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    released = images[[3, 7]] + 1e-3
    near = privacy.nearness_scores(images, released)
    assert set(np.argsort(-near)[:2]) == {3, 7}
    assert near[0] == pytest.approx(-min(float((images[0] - one).norm()) for one in released), rel=1e-5)


def test_only_the_rates_that_are_asked_for_need_so_many_others(scores):
    members, others = scores
    found = privacy.leakage(members, others[:500], repeats=20, rates=[0.01])
    assert set(found.tpr) == set(found.tpr_intervals) == {0.01}
    assert privacy.leakage(members, others[:50], repeats=20, rates=[]).tpr == {}
    with pytest.raises(InputError, match="at least one member and 100 others"):
        privacy.leakage(members, others[:50], rates=[0.01])


def test_too_few_images_scores_that_are_not_finite_and_other_shapes_are_refused():
    with pytest.raises(InputError, match="at least one member and 1000 others"):
        privacy.leakage(np.ones(5), np.ones(999))
    with pytest.raises(InputError, match="not finite"):
        privacy.leakage(np.array([np.nan]), np.ones(1000))
    with pytest.raises(InputError, match=r"\(3, 4, 4\) and the released ones \(1, 4, 4\)"):
        privacy.nearness_scores(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
