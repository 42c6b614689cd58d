"""Without the compiled core everything gives the same results to rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small import MATCHING, NETWORK, SETTINGS, image_set

from ddlnl import _core, augment, dance, matching, networks, preprocess, training
from ddlnl.generators import generator
from ddlnl.training import Recipe

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not _core.load(), reason="there is no compiled core to compare with")


@pytest.fixture
def both(monkeypatch):
    """Runs a function with the compiled operators and with their twins."""

    def run(function):
        assert _core.active(torch.zeros(1))
        compiled = function()
        with monkeypatch.context() as patch:
            patch.setattr(_core, "active", lambda _: False)
            return compiled, function()

    return run


def preprocessed():
    train = image_set(per_class=12)
    return train, preprocess.fit(train.images, "normalise")


def test_students_end_with_the_same_weights(both):
    train, normalise = preprocessed()
    images = normalise.apply(preprocess.to_float(train.images))
    targets = training.one_hot(torch.from_numpy(train.observed), 3)
    recipe = Recipe(epochs=2, batch_size=12, lr=0.02, augmentation="color_crop_flip_scale_rotate_cutout", cutmix=0.5)

    def weights():
        stack = training.initialise(lambda: NETWORK.build(3, 8, 3), [0, 1], CPU)
        training.train(stack, images, targets, recipe, [0, 1])
        return networks.flatten(stack.state())

    compiled, twin = both(weights)
    assert not torch.equal(compiled, twin)
    torch.testing.assert_close(compiled, twin, rtol=1e-3, atol=1e-4)


def test_an_iteration_of_dance_moves_the_images_alike(both):
    train, normalise = preprocessed()
    images = normalise.apply(preprocess.to_float(train.images))
    settings = replace(SETTINGS, factor=1)
    experts = dance.train_experts(images, training.one_hot(torch.from_numpy(train.observed), 3), settings, 0)

    def moved():
        run = dance.Dance(train, 2, settings, experts, normalise, 0, CPU)
        state = dance.Momentum(dance.initial_images(train, 2, settings, 0), 3, 0.1, 0.5)
        run.iterate(state, 0)
        return state.velocity

    compiled, twin = both(moved)
    assert (compiled - twin).norm() <= 1e-4 * twin.norm()


def test_the_gradient_of_trajectory_matching_is_alike(both):
    source = generator(0, "backends")
    network = NETWORK.build(3, 8, 3)
    start = torch.cat([one.detach().flatten() for one in network.parameters()]).double()
    target = start + 0.05 * torch.randn(start.shape, generator=source, dtype=torch.float64)
    images = torch.randn(6, 3, 8, 8, generator=source, dtype=torch.float64)
    logits = torch.randn(6, 3, generator=source, dtype=torch.float64)
    steps = torch.stack([torch.randperm(6, generator=source)[:4] for _ in range(3)])
    draws = [augment.draw(MATCHING.strategy, 4, (8, 8), source, mode="single") for _ in steps]

    def gradients():
        return matching.matching_gradient(network, start, target, images, logits, 0.1, steps, draws)

    for compiled, twin in zip(*both(gradients), strict=True):
        torch.testing.assert_close(compiled, twin, rtol=1e-10, atol=1e-12)
