"""Confident learning judges every image by a network that was not trained on it; what it suspects can be left out."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small import image_set, profile

import ddlnl
from ddlnl import cleaned, cleaning, methods, noise, preprocess, training
from ddlnl.errors import InputError
from ddlnl.profiles import PROFILES


def test_parts_spread_every_class_evenly_and_hold_every_image_once():
    observed = np.repeat([0, 1, 2], [10, 23, 7])
    part = cleaning.parts(observed, 5, seed=0)
    for label in range(3):
        counts = np.bincount(part[observed == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (part != cleaning.parts(observed, 5, seed=1)).any()


@pytest.mark.parametrize("folds", [1, 8])
def test_too_few_or_too_many_folds_are_refused(folds):
    with pytest.raises(InputError, match="must be from 2 to 7"):
        cleaning.parts(np.repeat([0, 1], [10, 7]), folds, seed=0)


def test_a_network_learns_nothing_from_its_own_part():
    part = torch.tensor([0, 1, 0, 1, 1])
    objective = cleaning.LeftOut(part)
    logits = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
    targets = training.one_hot(torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]]).flatten(), 3).unflatten(0, (2, 4)).double()
    loss = objective(logits, targets, index, 0)
    seen = part[index] != torch.tensor([[0], [1]])
    expected = sum(-logits[m].log_softmax(1)[targets[m] == 1][seen[m]].mean() for m in (0, 1))
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[~seen] == 0).all()
    assert (gradient[seen] != 0).any(1).all()


@pytest.fixture
def data():
    return noise.corrupt(image_set(per_class=20), "symmetric:0.3", seed=0)


def test_what_is_said_of_an_image_does_not_depend_on_its_label(data, monkeypatch):
    fitted = preprocess.fit(data.images, "normalise", "small")
    images, targets = methods.training_tensors(data, fitted, torch.device("cpu"))
    part = cleaning.parts(data.observed, 2, seed=0)
    monkeypatch.setattr(cleaning, "parts", lambda *_: part)

    def probabilities(targets):
        return cleaning.cross_validated(images, targets, profile().full, seed=0, folds=2)

    before = probabilities(targets)
    np.testing.assert_allclose(before.sum(1), 1, rtol=1e-5)
    changed = targets.clone()
    changed[part == 0] = changed[part == 0].roll(1, 1)
    after = probabilities(changed)
    np.testing.assert_array_equal(after[part == 0], before[part == 0])
    assert (after[part == 1] != before[part == 1]).any(1).all()


def test_a_resumed_cross_validation_says_the_same(data):
    class Memory:
        kept = None

        def load(self):
            return self.kept

        def save(self, step, state):
            if step == 2:
                self.kept = (2, {name: tensor.clone() for name, tensor in state().items()})

    memory = Memory()
    tensors = methods.training_tensors(data, preprocess.fit(data.images, "normalise"), torch.device("cpu"))
    whole = cleaning.cross_validated(*tensors, profile().full, seed=0, folds=2, progress=memory)
    assert memory.kept is not None
    resumed = cleaning.cross_validated(*tensors, profile().full, seed=0, folds=2, progress=memory)
    np.testing.assert_array_equal(resumed, whole)


def test_confident_learning_finds_labels_that_contradict_good_probabilities():
    pytest.importorskip("cleanlab")
    source = np.random.default_rng(0)
    clean = np.repeat([0, 1, 2], 50)
    probabilities = 0.9 * np.eye(3)[clean] + 0.1 * source.dirichlet(np.ones(3), 150)
    observed = clean.copy()
    observed[::10] = (clean[::10] + 1) % 3
    issues = cleaning.confident_learning(observed, probabilities)
    assert sorted(issues.suspected) == list(range(0, 150, 10))
    assert set(issues.ranking[:15]) == set(range(0, 150, 10))
    assert sorted(issues.ranking) == list(range(150))


def test_without_cleanlab_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(InputError, match="pip install cleanlab"):
        cleaning.confident_learning(np.array([0, 1]), np.eye(2))


def test_the_comparison_counts_both_at_the_numbers_that_either_suspects(data, monkeypatch):
    monkeypatch.setitem(PROFILES, "demo", profile())
    report = ddlnl.denoise(data, "random", 2, "demo")
    wrong = np.flatnonzero(data.observed != data.clean)
    right = np.flatnonzero(data.observed == data.clean)
    issues = cleaning.Issues(wrong[:4], np.concatenate([wrong, right]))  # a perfect ranking
    table = cleaning.compare(report, issues, data.clean).set_index(["found_by", "flagged"])
    ours = len(report.found.suspected)
    truth = report.against(data.clean)
    assert set(table.index) == {
        ("confident learning, as it chooses", 4),
        *((name, count) for name in ("confident learning", "students of the other half") for count in (4, ours)),
    }
    row = table.loc[("students of the other half", ours)]
    assert (row["precision"], row["recall"]) == pytest.approx((truth["precision"], truth["recall"]))
    row = table.loc[("confident learning", 4)]
    assert (row["precision"], row["recall"], row["average_precision"]) == pytest.approx((1, 4 / len(wrong), 1))


def test_confident_learning_runs_on_a_report_with_its_profile_and_seed(data, monkeypatch):
    pytest.importorskip("cleanlab")
    monkeypatch.setitem(PROFILES, "demo", profile())
    report = ddlnl.denoise(data, "random", 2, "demo", seed=3)
    first, second = (cleaning.issues_in(report, folds=2, device="cpu") for _ in range(2))
    np.testing.assert_array_equal(first.ranking, second.ranking)
    assert set(first.suspected) <= set(range(len(data)))


def test_the_table_beside_a_report_is_written_with_it_and_without_truth_only_counts(data, monkeypatch, tmp_path):
    pytest.importorskip("cleanlab")
    monkeypatch.setitem(PROFILES, "demo", profile())
    report = ddlnl.denoise(data, "random", 2, "demo")
    table = cleaning.beside(report, "cpu")
    assert "%</td>" in cleaning.readable(table)
    paths = report.save(tmp_path, table)
    assert tmp_path / "comparison.csv" in paths
    assert list(pd.read_csv(tmp_path / "comparison.csv")["found_by"]) == list(table["found_by"])
    untold = replace(data, clean=data.observed, noise="clean")
    counts = cleaning.beside(ddlnl.denoise(untold, "random", 2, "demo"), "cpu").set_index("found_by")["flagged"]
    assert counts["both"] <= min(counts[cleaning.OURS], counts[cleaning.THEIRS])
    assert list(counts.index) == [cleaning.OURS, cleaning.THEIRS, "both"]
    assert "%" not in cleaning.readable(counts.reset_index())


def test_suspects_are_dropped_and_a_class_that_is_left_with_too_few_gets_its_least_doubtful_back():
    train = image_set(per_class=4)
    ranking = np.random.default_rng(0).permutation(12)  # the most doubtful first
    suspected = np.flatnonzero(train.observed != 2)[:7]  # all of one class and most of the other
    kept, report = cleaned.keep(train, suspected, ranking, least=2)
    counts = np.bincount(train.observed[np.setdiff1d(np.arange(12), suspected)], minlength=3)
    assert np.bincount(kept.observed).tolist() == np.maximum(counts, 2).tolist()
    assert report["dropped"] == 12 - len(kept)
    assert report["filled_up"] == len(kept) - 5 > 0
    left = {image.tobytes() for image in kept.images}
    place = {image: rank for rank, image in enumerate(ranking)}
    for label in (0, 1):
        mine = [image for image in suspected if train.observed[image] == label]
        back = [place[image] for image in mine if train.images[image].tobytes() in left]
        out = [place[image] for image in mine if train.images[image].tobytes() not in left]
        assert min(back, default=99) > max(out, default=-1)


def test_the_report_of_a_cleaning_counts_wrong_labels_that_choosing_does_not_see(data):
    wrong, ranking = np.flatnonzero(data.observed != data.clean), np.arange(len(data))
    kept, report = cleaned.keep(data, wrong[1:], ranking, least=1)
    assert report == {
        "dropped": len(wrong) - 1,
        "filled_up": 0,
        "wrong_before": len(wrong),
        "wrong_after": 1,
    }
    untold = replace(data, clean=data.observed)
    np.testing.assert_array_equal(cleaned.keep(untold, wrong[1:], ranking, 1)[0].images, kept.images)


def test_a_class_too_small_for_cross_validation_is_refused_in_one_sentence():
    pytest.importorskip("cleanlab")
    with pytest.raises(InputError, match=r"4 training images with label 'class 0' .* at least 5 of every class"):
        cleaned.check(image_set(per_class=4))


def test_without_cleanlab_a_notebook_leaves_the_methods_out_and_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    assert cleaned.methods_here() == ()
    assert "pip install cleanlab" in " ".join(cleaned.left_out())
    with pytest.raises(InputError, match="pip install cleanlab"):
        cleaned.check(image_set(per_class=10))
