"""Cleaning before distilling: every image is judged by a network that has not seen it, and cleanlab prunes."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_sets import refusal
from small import NETWORK, image_set
from test_label_errors import PLANTED, drawn

from ddlnl import cleaning, label_errors, training
from ddlnl.training import Protocol, Recipe

PROTOCOL = Protocol(NETWORK, Recipe(epochs=1, batch_size=8))


def test_no_network_predicts_an_image_that_it_was_trained_on(monkeypatch):
    images = torch.arange(24.0)[:, None, None, None].expand(-1, 1, 8, 8)
    targets = training.one_hot(torch.arange(24) % 3, 3)
    seen, predicted = [], []
    monkeypatch.setattr(training, "train", lambda stack, images, *_: seen.append(set(images[:, 0, 0, 0].tolist())))

    def predict(stack, images):
        predicted.append(set(images[:, 0, 0, 0].tolist()))
        return images[:, 0, 0, 0][None, :, None] * torch.tensor([0.0, 1.0, 0.0])

    monkeypatch.setattr(training, "predict", predict)
    found = cleaning.cross_validated(images, targets, PROTOCOL, 0, folds=4)
    assert all(not one & other for one, other in zip(seen, predicted, strict=True))
    assert set().union(*predicted) == set(range(24))
    odds = torch.arange(24.0).double()[:, None] * torch.tensor([0.0, 1.0, 0.0])
    np.testing.assert_allclose(found, odds.softmax(1))


def test_more_folds_than_images_of_a_class_are_refused():
    targets = training.one_hot(torch.tensor([0, 0, 0, 1]), 2)
    assert "allowed are 2 to 1" in refusal(cleaning.cross_validated, torch.zeros(4, 1, 8, 8), targets, PROTOCOL, 0)


def test_what_cleanlab_leaves_has_fewer_wrong_labels():
    pytest.importorskip("cleanlab")
    logits, true, given = drawn(PLANTED, 600)
    train = replace(image_set(classes=4, per_class=150), observed=given, clean=true)
    left = cleaning.without_errors(train, label_errors.predictions(logits, 1.0))
    assert len(left) < len(train)
    assert (left.observed != left.clean).mean() < 0.5 * (given != true).mean()


def test_without_cleanlab_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    train = image_set()
    assert "pip install 'ddlnl[study]'" in refusal(cleaning.without_errors, train, np.full((30, 3), 1 / 3))
