from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small import NETWORK, SETTINGS, image_set
from torch.func import functional_call

from ddlnl import dance, networks, precision, preprocess, training
from ddlnl.distilled import decode
from ddlnl.errors import InputError
from ddlnl.generators import generator

CPU = torch.device("cpu")


def make_run(ipc=2, **changes):
    """A run on a small image set with experts that differ from their initialisation."""
    train = image_set(classes=4)
    settings = replace(SETTINGS, **changes)
    preprocessing = preprocess.fit(train.images, "normalise")
    images = preprocessing.apply(preprocess.to_float(train.images))
    targets = training.one_hot(torch.from_numpy(train.observed), 4)
    experts = dance.train_experts(images, targets, settings, 0)
    return dance.Dance(train, ipc, settings, experts, preprocessing, 0, CPU), train


def in_float64(run):
    """ReLU's kinks turn rounding into jumps, so exact statements are made in float64."""
    run.network.double()
    run.initial, run.trained = run.initial.double(), run.trained.double()
    return run


def sequential_iteration(run, images, optimiser, iteration):
    """The published loop, word for word: one optimiser step over the whole tensor for each class and view."""
    draws = run.draw(iteration)
    with torch.no_grad():
        images.clamp_(0, 1)
    losses = []
    for view in ("matching", "calibration"):
        for label in range(run.classes):
            members = images[label * run.ipc : (label + 1) * run.ipc]
            if view == "matching":
                loss = run.matching_loss(members, label, iteration, draws)
            else:
                loss = run.calibration_loss(members, label, draws)
            optimiser.zero_grad(set_to_none=False)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("factor", "synthetic_batch"), [(2, 200), (1, 200), (2, 5)])
def test_stepping_all_classes_at_once_equals_the_published_loop_over_classes(factor, synthetic_batch):
    run, train = make_run(factor=factor, synthetic_batch=synthetic_batch)
    in_float64(run).group = 3  # groups that do not divide the classes
    together = dance.initial_images(train, run.ipc, run.settings, 0).double()
    alone = together.clone().requires_grad_()
    state = dance.Momentum(together, run.classes, 5.0, run.settings.momentum)
    optimiser = torch.optim.SGD([alone], lr=5.0, momentum=run.settings.momentum)
    for iteration in range(20):
        losses = run.iterate(state, iteration)
        expected = sequential_iteration(run, alone, optimiser, iteration)
        assert losses[0].item() == pytest.approx(sum(expected[:4]) / 4, rel=1e-8)
        assert losses[1].item() == pytest.approx(sum(expected[4:]) / 4, rel=1e-8)
    moved = (alone - dance.initial_images(train, run.ipc, run.settings, 0)).abs().max()
    assert moved > 0.05
    torch.testing.assert_close(state.images, alone.detach(), atol=1e-8, rtol=0)


def test_one_gradient_is_worth_lr_over_one_minus_momentum_in_the_end():
    state = dance.Momentum(torch.zeros(2, 1, 1, 1), 2, 0.1, 0.5)
    state.step(torch.ones(2, 1, 1, 1))
    state.coast(torch.tensor([60, 0]))
    assert state.images.flatten().tolist() == pytest.approx([-0.2, -0.1])


@pytest.mark.parametrize("view", ["matching", "calibration"])
def test_losses_and_gradients_agree_with_the_formula_in_float64(view):
    run, train = make_run()
    draws = in_float64(run).draw(7)
    images = dance.initial_images(train, run.ipc, run.settings, 0).double().requires_grad_()

    def ours(s):
        return run.matching_loss(s, 0, 7, draws) if view == "matching" else run.calibration_loss(s, 0, draws)

    def formula(s):
        """Per class, from the definitions, with nothing shared but the drawn numbers."""
        total = 0
        for label in range(run.classes):
            tiles = decode(s[label * run.ipc : (label + 1) * run.ipc], run.settings.factor)
            mixed = draws.mix * run.initial[draws.expert] + (1 - draws.mix) * run.trained[draws.expert]
            flat, drawn = (
                (mixed, draws.matching) if view == "matching" else (run.trained[draws.expert], draws.calibrations[0])
            )
            parameters = networks.unflatten(flat, run.network)

            def output(pixels, features, drawn=drawn, label=label, parameters=parameters):
                one = drawn.rows(torch.tensor([label]))
                return functional_call(run.network, parameters, (one(run.preprocessing.apply(pixels)), features))

            if view == "matching":
                real = run.real[run.batches(label, 7)].permute(0, 3, 1, 2).double() / 255
                total = total + (output(tiles, True).mean(0) - output(real, True).mean(0)).square().sum()
            else:
                total = total - F.log_softmax(output(tiles, False), 1)[:, label].mean()
        return total

    value, gradient = ours(images), torch.autograd.grad(ours(images), images)[0]
    expected = torch.autograd.grad(formula(images), images)[0]
    assert value.item() == pytest.approx(formula(images).item(), rel=1e-12)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-10)
    direction = torch.randn(images.shape, dtype=torch.float64, generator=generator(0, "direction"))
    step = 1e-8
    difference = (formula(images + step * direction) - formula(images - step * direction)).item() / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(difference, rel=1e-5)


def test_mixed_initialisation_puts_shrunken_images_of_the_observed_class_into_tiles():
    train = image_set(classes=2, per_class=9)
    images = dance.initial_images(train, 2, SETTINGS, 0)
    members = preprocess.to_float(train.images[train.observed == 1])
    for row in range(2):
        for column in range(2):
            tile = images[2 + 1, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
            assert torch.equal(tile, members[(row * 2 + column) * 2 + 1, :, ::2, ::2])


def test_a_class_with_too_few_images_for_all_tiles_is_topped_up_from_itself():
    train = image_set(classes=2, per_class=3)
    images = dance.initial_images(train, 3, SETTINGS, 0)
    own = preprocess.to_float(train.images[train.observed == 0])[:, :, ::2, ::2]
    tiles = torch.cat([band for half in images[:3].split(4, 2) for band in half.split(4, 3)])
    assert all(any(torch.equal(tile, one) for one in own) for tile in tiles)


def test_decode_gives_the_known_values_and_tile_order():
    wave = torch.sin(
        1.3 * torch.arange(3.0)[:, None, None] + 0.5 * torch.arange(8.0)[:, None] + 0.9 * torch.arange(8.0)
    )
    tiles = decode(wave[None], 2)
    rows = [
        (0, 0.195832, 0.587495, 0.830957),
        (-0.442520, -0.576273, -0.843778, -0.926339),
        (0.909297, 0.741785, 0.406761, 0.026472),
        (-0.631267, -0.419670, 0.003523, 0.386017),
    ]
    for tile, row, total in zip(tiles, rows, (-11.94805, 30.71799, -36.13129, 19.26898), strict=True):
        assert tile[0, 0, :4].tolist() == pytest.approx(row, abs=1e-5)
        assert tile.sum().item() == pytest.approx(total, abs=1e-4)


def test_sides_that_do_not_divide_use_one_tile_boundary_for_making_and_decoding():
    train = image_set(classes=2, per_class=9, side=28)
    settings = replace(SETTINGS, factor=3)
    tiles = decode(dance.initial_images(train, 1, settings, 0), 3)
    members = preprocess.to_float(train.images[train.observed == 0])
    again = F.interpolate(F.interpolate(members, size=(10, 10), mode="nearest"), size=(28, 28), mode="bilinear")
    torch.testing.assert_close(tiles[0], again[0])


def test_real_batches_pass_over_a_class_without_repeats_and_do_not_depend_on_history():
    observed = torch.tensor([0] * 10 + [1] * 4)
    batches = dance.RealBatches(observed, 2, 4, seed=5)
    first_pass = torch.cat([batches(0, turn) for turn in range(2)])
    assert len(first_pass.unique()) == 8  # the incomplete third batch is dropped
    assert sorted(batches(1, 3).tolist()) == [10, 11, 12, 13]
    later = batches(0, 9)
    assert torch.equal(dance.RealBatches(observed, 2, 4, seed=5)(0, 9), later)


def test_a_resumed_run_ends_with_the_same_images():
    run, train = make_run()
    experts = {"initial": run.initial, "trained": run.trained}

    class Memory:
        kept = None

        def load(self):
            return self.kept

        def save(self, step, state):
            if step == 2:
                self.kept = (step, {name: tensor.clone() for name, tensor in state().items()})

    def end(progress=None):
        return list(dance.distil(train, 2, run.settings, experts, run.preprocessing, 0, CPU, progress))

    memory = Memory()
    whole = end(memory)
    assert [iteration for iteration, _ in whole] == [0, 4]
    resumed = end(memory)
    assert [iteration for iteration, _ in resumed] == [4]
    assert torch.equal(whole[-1][1], resumed[-1][1])


def test_a_loss_that_is_not_finite_stops_the_run():
    run, train = make_run()
    experts = {"initial": run.initial, "trained": run.trained * float("nan")}
    with pytest.raises(training.NotFinite, match="iteration 0 of 4"):
        list(dance.distil(train, 2, run.settings, experts, run.preprocessing, 0, CPU))


def test_the_published_defaults_are_those_of_the_released_code():
    settings = dance.Settings()
    assert (settings.iterations, settings.lr_per_ipc, settings.momentum, settings.factor) == (10_000, 0.01, 0.5, 2)
    assert (settings.real_batch, settings.synthetic_batch, settings.experts) == (128, 200, 5)
    assert settings.strategy == "color_crop_cutout"
    recipe = settings.expert_recipe
    assert [recipe.rate(epoch) for epoch in (0, 39, 40, 49, 50, 59)] == pytest.approx(
        [0.01] * 2 + [0.002] * 2 + [0.0004] * 2
    )
    assert len(settings.evaluate_at) == 21
    assert NETWORK.build(4, 8, 3)(torch.zeros(1, 3, 8, 8)).shape == (1, 4)


def test_noise_initialisation_is_clamped_and_depends_on_the_seed():
    settings = replace(SETTINGS, initialisation="noise")
    first, second = (dance.initial_images(image_set(), 2, settings, seed) for seed in (0, 1))
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first, second)
    assert first.shape == torch.randn(6, 3, 8, 8, generator=generator(0, "shape")).shape


def test_a_precision_whose_gradient_points_elsewhere_is_refused(monkeypatch):
    run, train = make_run(architecture=replace(NETWORK, precision="bf16"))
    experts = {"initial": run.initial, "trained": run.trained}
    arguments = train, 2, run.settings, experts, run.preprocessing, 0, CPU
    monkeypatch.setattr(precision, "LEAST_COSINE", 0.9)
    assert next(dance.distil(*arguments))[0] == 0
    loss = dance.Dance.matching_loss

    def coarse(self, images, *rest):
        value = loss(self, images, *rest)
        return value + 1e3 * images.sum() if self.network.blocks[0].half else value

    monkeypatch.setattr(dance.Dance, "matching_loss", coarse)
    with pytest.raises(InputError, match=r"'bf16' the gradient of the matching loss has a cosine of -?0\.\d+ "):
        next(dance.distil(*arguments))
