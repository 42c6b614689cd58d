"""The fitted noise channel finds the noise that was planted, and what follows from it is Bayes' rule."""

from __future__ import annotations

import numpy as np
import pytest
from image_sets import refusal
from scipy import optimize, special

from ddlnl import label_errors

PLANTED = np.array([[0.7, 0.3, 0.0, 0.0], [0.1, 0.9, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.2, 0.1, 0.1, 0.6]])


def drawn(transition: np.ndarray, count: int = 3000, apart: float = 3.0, seed: int = 0):
    """Exact class log-odds (1, N, K) of points around the corners of a cube, their classes, and labels from the rows of
    a matrix."""
    source, classes = np.random.default_rng(seed), len(transition)
    true = source.integers(0, classes, count)
    points = apart * np.eye(classes)[true] + source.normal(size=(count, classes))
    given = np.array([source.choice(classes, p=transition[label]) for label in true])
    return apart * points[None], true, given


def test_the_planted_transition_matrix_and_temperature_are_found():
    logits, _, given = drawn(PLANTED)
    found = label_errors.find(2.5 * logits, given)
    np.testing.assert_allclose(found.transition, PLANTED, atol=0.05)
    assert found.temperature == pytest.approx(2.5, rel=0.25)
    np.testing.assert_allclose(found.transition.sum(1), 1)


def test_the_fit_is_the_maximum_of_the_likelihood():
    logits, _, given = drawn(np.array([[0.8, 0.2], [0.3, 0.7]]), 400, apart=1.5)
    shown = label_errors.predictions(logits, 1.0)

    def cost(stays):
        matrix = np.array([[stays[0], 1 - stays[0]], [1 - stays[1], stays[1]]])
        prior = label_errors.PRIOR * np.log(stays).sum()  # the added images, all labelled rightly
        return -np.log((shown * matrix[:, given].T).sum(1)).sum() - prior

    best = optimize.minimize(cost, [0.5, 0.5], bounds=[(0.01, 0.99)] * 2).x
    transition, likelihood = label_errors.fit(shown, given)
    np.testing.assert_allclose(np.diag(transition), best, atol=2e-3)
    mixed = (shown * transition[:, given].T).sum(1)
    assert likelihood == pytest.approx(np.log(mixed).mean(), abs=1e-4)


def test_suspicions_are_bayes_rule_and_as_precise_as_they_say():
    logits, true, given = drawn(PLANTED)
    found = label_errors.find(logits, given)
    shown = special.softmax(logits[0] / found.temperature, axis=1)
    expected = shown * found.transition[:, given].T
    np.testing.assert_allclose(found.posterior, expected / expected.sum(1, keepdims=True), atol=1e-9)
    wrong = given != true
    precision = wrong[found.suspected].mean()
    assert precision == pytest.approx(found.expected_precision, abs=0.05)
    assert (found.corrected != true).mean() < 0.4 * wrong.mean()
    assert (found.quality[found.suspected] < 0.5).all()
    assert (np.diff(found.quality[found.ranking]) >= 0).all()
    assert found.suspected.tolist() == [i for i in found.ranking if found.corrected[i] != given[i]]


def test_the_mean_over_networks_is_of_probabilities():
    logits = np.random.default_rng(0).normal(size=(3, 50, 4))
    expected = special.softmax(logits / 1.7, axis=2).mean(0)
    np.testing.assert_allclose(label_errors.predictions(logits, 1.7), expected)


def test_labels_without_errors_are_left_alone():
    logits, true, _ = drawn(np.eye(4), apart=5.0)
    found = label_errors.find(logits, true)
    assert len(found.suspected) == 0
    assert np.isnan(found.expected_precision)
    assert (found.corrected == true).all()
    assert np.diag(found.transition).min() > 0.99


def test_blind_predictions_suspect_nothing():
    """Where images tell nothing, the labels are the best there is."""
    _, _, given = drawn(PLANTED, 500)
    found = label_errors.find(np.zeros((1, 500, 4)), given)
    assert len(found.suspected) == 0


def test_the_names_of_the_classes_do_not_matter():
    logits, _, given = drawn(PLANTED, 1000)
    order = np.array([2, 0, 3, 1])
    one, other = label_errors.find(logits, given), label_errors.find(logits[..., order], np.argsort(order)[given])
    np.testing.assert_allclose(other.transition, one.transition[np.ix_(order, order)], atol=1e-8)
    assert other.suspected.tolist() == one.suspected.tolist()


def test_a_class_with_one_image_has_a_row_of_its_own():
    logits, _, given = drawn(np.eye(4)[:, [0, 1, 2, 3]], 200)
    given[given == 3] = 2
    given[0] = 3
    found = label_errors.find(logits, given)
    np.testing.assert_allclose(found.transition.sum(1), 1)
    assert np.isfinite(found.posterior).all()


def test_predictions_that_are_certain_do_not_make_a_label_impossible():
    logits, true, _ = drawn(np.eye(4), 100)
    given = (true + 1) % 4
    found = label_errors.find(1e4 * logits, given)
    assert np.isfinite(found.posterior).all()


def test_the_likeliest_other_class_is_never_the_given_one():
    logits, _, given = drawn(PLANTED, 300)
    found = label_errors.find(logits, given)
    assert (found.alternative != given).all()
    assert (found.alternative == found.corrected)[found.suspected].all()


def test_what_cannot_be_judged_is_refused():
    logits, _, given = drawn(PLANTED, 50)
    assert "(M, N, K) and (N,)" in refusal(label_errors.find, logits[0], given)
    assert "not finite" in refusal(label_errors.find, logits * np.nan, given)
    assert "allow 0 to 3" in refusal(label_errors.find, logits, given + 1)
    assert "No image has the label 3" in refusal(label_errors.find, logits, given % 3)
