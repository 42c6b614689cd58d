from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import image_set

from ddlnl import measure, preprocess, rcig, rcig_initial, rcig_settings, rcig_solve, training
from ddlnl.errors import InputError
from ddlnl.generators import generator
from ddlnl.rcig_network import Network
from ddlnl.rcig_pool import Pool
from ddlnl.rcig_rates import Rates
from ddlnl.rcig_settings import Settings
from ddlnl.rcig_solve import Support

CPU = torch.device("cpu")
SMALL = Settings(
    iterations=6,
    depth=2,
    width=4,
    pool=3,
    pool_age=12,
    pool_lr=1e-3,
    real_batch=12,
    inner_steps=5,
    hessian_steps=5,
    inner_lr=1e-3,
    hessian_lr=3.0,
    evaluate_at=(0.0, 0.5),
)


def make_run(ipc=2, train=None, seed=0, **changes):
    train = image_set() if train is None else train
    return rcig.Rcig(train, ipc, replace(SMALL, **changes), preprocess.fit(train.images, "normalise"), seed, CPU)


class Memory:
    """A place for states that keeps that before iteration `at`."""

    def __init__(self, at=None):
        self.at, self.kept = at, None

    def load(self):
        return self.kept

    def save(self, step, state):
        if step == self.at:
            self.kept = step, {name: tensor.clone() for name, tensor in state().items()}


@pytest.mark.parametrize("quirks", [False, True])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(quirks):
    changes = {"inner_lr": None, "published_quirks": quirks, "inner_rows": 7, "pool_rows": 5}
    memory = Memory(at=4)
    whole = make_run(**changes)
    assert list(rcig.distil(whole, memory)) == [0, 3, 6]
    again = make_run(**changes)
    assert list(rcig.distil(again, memory)) == [6]
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, again.state()[name]), name
    assert whole.report(6) == again.report(6)


def test_the_outer_loss_falls_and_the_product_is_the_average():
    run = make_run(iterations=40, real_batch=30, inner_lr=3e-3)
    images = []
    for iteration in range(40):
        run.iterate(iteration)
        images.append(run.images.clone())
    losses = run.curves["losses"]
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()
    weights = 0.99 ** torch.arange(39, -1, -1.0)
    expected = sum(weight * one for weight, one in zip(weights, images, strict=True)) / weights.sum()
    torch.testing.assert_close(run.product()["images"], expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(run.labels, run.product()["labels"])


@pytest.mark.parametrize(
    "changes",
    [
        {
            "published_quirks": True,
            "hessian_rows": 3,
            "direct_rows": 4,
            "real_rows": 5,
            "implicit_rows": 4,
            "repeats": 2,
        },
        {"subsample": True, "inner_rows": 3},
        {"final_kernel": False},
        {"solver": "cg"},
        {"mirror": False},
        {"activation": "relu"},
        {"initialisation": "noise"},
    ],
)
def test_every_option_changes_the_result(changes):
    runs = [make_run(**one) for one in ({}, changes)]
    for run in runs:
        for iteration in range(2):
            run.iterate(iteration)
    assert not torch.allclose(runs[0].images, runs[1].images, rtol=0, atol=1e-7)


def test_labels_stay_where_they_are_unless_they_are_learned():
    run = make_run(learn_labels=False)
    before = run.labels.clone()
    run.iterate(0)
    assert torch.equal(run.labels, before)


def test_row_numbers_count_only_for_the_named_estimator():
    runs = [make_run(inner_rows=rows, direct_rows=rows, repeats=3) for rows in (None, 2)]
    for run in runs:
        run.iterate(0)
    assert torch.equal(runs[0].images, runs[1].images)


def test_published_quirks_leave_no_trace_in_the_pool_before_it_is_trained():
    run = make_run(published_quirks=True)
    run.pool.train(0, *run.support(), 3, generator(0, "test"))
    before = {name: tensor.clone() for name, tensor in run.pool.tensors().items()}
    _, _, support = run._solve_inner(0, run.support()[1], generator(0, "test"))
    for name, tensor in run.pool.tensors().items():
        assert torch.equal(tensor, before[name])
    moved = (support.base - run.pool.base[0]).abs()
    assert 0 < moved.max() <= 8 * run.settings.pool_lr


def quadratic():
    network = Network(3, 1, 4, 8, 3)
    base = network.initialise(generator(0, "test")).double()
    images = torch.randn(6, 3, 8, 8, generator=generator(1, "test"), dtype=torch.float64)
    labels = torch.randn(6, 3, generator=generator(2, "test"), dtype=torch.float64)
    return Support(network, base, images, 3.0, 4), labels


@pytest.mark.parametrize(("age", "factor"), [(10, 0.48), (50, 0.71), (100, 0.98)])
def test_an_inherited_counter_shortens_the_first_inner_step_as_published(age, factor):
    support, labels = quadratic()
    fresh, inherited = (rcig_solve.inner(support, labels, 0.1, 1, count=count).tangent for count in (0, age))
    large = fresh.abs() > 0.0999
    assert large.any()
    assert (inherited / fresh)[large].mean().item() == pytest.approx(factor, abs=0.006)


def test_an_ascending_kernel_moves_along_its_gradient_with_rate_one():
    support, labels = quadratic()
    head = support.network.head
    gradient = -support.scale * support.pull(support.solve(labels))[head]
    moved = rcig_solve.inner(support, labels, 0.1, 1, ascend_kernel=True).tangent[head]
    torch.testing.assert_close(moved, gradient)
    assert not rcig_solve.inner(support, labels, 0.1, 1).tangent[head].any()


def test_a_run_that_is_not_finite_stops_and_names_what():
    run = make_run()
    run.labels[0, 0] = torch.nan
    with pytest.raises(training.NotFinite, match="labels is not finite in iteration 0 of 6"):
        run.iterate(0)
    run = make_run()
    run.images[0] = torch.inf
    with pytest.raises(training.NotFinite, match="images is not finite in iteration 0 of 6"):
        run.iterate(0)
    run = make_run()
    run.images[0] = 3e38  # its features overflow
    with pytest.raises(training.NotFinite, match="Gram matrix"):
        run.iterate(0)


def test_a_run_that_stops_names_its_last_good_checkpoint():
    run, memory = make_run(), Memory(at=1)
    iterations = rcig.distil(run, memory)
    assert next(iterations) == 0
    assert next(iterations) == 3
    run.log_temperature.fill_(torch.nan)
    with pytest.raises(
        training.NotFinite, match=r"log temperature .* iteration 3 of 6\..* before iteration 1 is kept\."
    ):
        next(iterations)


def test_solves_that_diverge_are_counted():
    run = make_run(inner_lr=10.0, hessian_lr=1e4)
    for iteration in range(2):
        run.iterate(iteration)
    report = run.report(2)
    assert report["inner_diverged"] == report["hessian_diverged"] == report["inner_not_monotone"] == 2


def test_peak_memory_does_not_grow_with_the_inner_steps():
    network = Network(10, 3, 32)
    images = torch.randn(64, 3, 32, 32, generator=generator(0, "test"))
    support = Support(network, network.initialise(generator(0, "test")), images, 0.05, 64)
    labels = torch.eye(10).repeat(7, 1)[:64]
    peaks = []
    for steps in (2, 2, 12):
        measure.reset_peak(CPU)
        rcig_solve.inner(support, labels, 1e-3, steps)
        peaks.append(measure.peak_mib(CPU))
    assert peaks[2] < 1.05 * peaks[1] + 4


def test_pool_networks_begin_anew_between_100_and_114_steps_and_independently():
    settings = Settings(pool=2, depth=1, width=2)
    network = Network(3, 1, 2, 4, 3)
    pool = Pool(network, settings, 0, CPU, 8)
    images, labels = torch.zeros(3, 3, 4, 4), torch.eye(3)
    ages, steps_taken, other = [], Counter(), pool.base[1].clone()
    for turn in range(300):
        steps = int(torch.randint(1, settings.pool_steps + 1, (), generator=generator(0, turn)))
        steps_taken[steps] += 1
        age, lives = int(pool.ages[0]), int(pool.lives[0])
        pool.train(0, images, labels, steps, generator(0, turn))
        if pool.lives[0] > lives:
            ages.append(age + steps)
            assert pool.ages[0] == 0
            assert not pool.mean[0].any()
            assert torch.equal(pool.base[0], network.initialise(generator(0, "pool", 0, lives + 1)))
    assert len(ages) > 15
    assert all(100 <= age <= 114 for age in ages)
    assert set(steps_taken) == set(range(1, 16))
    assert torch.equal(pool.base[1], other)


def test_a_pool_step_is_adam_on_the_squared_error_of_the_plain_network():
    from rcig_twin import logits_and_features

    settings = Settings(pool=1, depth=2, width=4, pool_lr=1e-3)
    network = Network(3, 2, 4, 8, 3)
    pool = Pool(network, settings, 0, CPU, 4)
    images, labels = torch.randn(6, 3, 8, 8, generator=generator(0, "test")), torch.eye(3).repeat(2, 1)
    flat = pool.base[0].clone().requires_grad_()
    optimiser = torch.optim.Adam([flat], 1e-3)
    for _ in range(4):
        optimiser.zero_grad()
        loss = (logits_and_features(network, flat, images)[0] - labels).square().sum() / 2 / 18
        loss.backward()
        optimiser.step()
    pool.train(0, images, labels, 4, generator(0, "test"))
    torch.testing.assert_close(pool.base[0], flat.detach(), rtol=1e-4, atol=1e-5)


def test_learning_rates_are_adapted_every_50_iterations_from_the_scores_since_then():
    rates = Rates(replace(SMALL, iterations=200, inner_lr=1.0))
    down, up = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 2.0])
    for iteration in range(200):
        if iteration <= 50:
            sequence = down
        elif iteration <= 100:
            sequence = up if iteration % 3 == 0 else down
        else:
            sequence = torch.tensor([2.0, 1.0, 1.5]) if iteration % 2 else down
        rates.note("inner", iteration, sequence, adapt=True)
        rates.note("hessian", iteration, up, adapt=False)
        expected = 1.0 if iteration < 50 else 1.05 if iteration < 100 else 1.05 * 0.9
        assert rates["inner"] == pytest.approx(expected)
    assert rates["hessian"] == SMALL.hessian_lr


def test_learning_rates_that_are_not_given_are_tuned_to_the_edge_of_descent():
    run = make_run(inner_lr=None, hessian_lr=None)
    run.begin()
    support = run.quadratic(run.network.initialise(generator(0, "tuning")))

    def score(lr):
        return rcig_solve.score(rcig_solve.inner(support, run.support()[1], lr, 5).losses)

    assert score(run.rates["inner"] / 1.008) == 1
    assert score(run.rates["inner"] / 0.84) != 1
    assert run.rates["hessian"] > 5e-5


def test_initial_images_are_chosen_by_observed_or_by_clean_label():
    train = image_set(classes=3, per_class=12)
    observed = (train.clean + (np.arange(36) % 2)) % 3
    noisy = replace(train, observed=observed)
    preprocessing = preprocess.fit(train.images, "normalise")
    pixels = preprocessing.apply(preprocess.to_float(train.images))
    for name, labels in (("real", observed), ("clean", train.clean)):
        initial = rcig_initial.initial_set(noisy, 3, name, preprocessing, 0)
        wrong = 0
        for place, image in enumerate(initial.images):
            where = int((pixels - image).flatten(1).norm(dim=1).argmin())
            assert labels[where] == place // 3
            wrong += int(train.clean[where] != place // 3)
        assert initial.wrong_labels == wrong
        assert (wrong > 0) == (name == "real")
        assert torch.allclose(initial.labels[0], torch.tensor([2 / 3, -1 / 3, -1 / 3]))
    noise = rcig_initial.initial_set(noisy, 3, "noise", preprocessing, 0)
    assert noise.images.std().item() == pytest.approx(0.3, rel=0.1)


def test_the_table_has_every_published_set_with_its_defects_repaired():
    table = rcig_settings.table()
    assert Counter(row["source"] for row in table) == {"config": 7, "rcig": 22, "study": 85}
    assert all(row["pool_rows"] for row in table if row["config"] in ("cifar100_50", "depth_4_big"))
    assert rcig_settings.published("cifar10", "symmetric:0.4", 10) == Settings()
    large = rcig_settings.published("cifar100", "human:noisy_fine", 50)
    assert (large.mirror, large.inner_rows, large.pool_rows, large.repeats) == (False, 2000, 2000, 2)
    tiny = rcig_settings.published("tiny_imagenet", "clean", 10)
    assert (tiny.depth, tiny.activation, tiny.direct_rows, tiny.real_rows) == (4, "relu", 500, 256)
    assert rcig_settings.published("imagenette", "clean", 1).l2_rate == 0.05
    assert rcig_settings.published("mnist", "clean", 1).mirror is False
    assert rcig_settings.published_augmentation("mnist", 1) == "crop_rotate_translate_cutout"
    assert rcig_settings.published("tiny_imagenet", "pairflip:0.2", 1).iterations == 10_000


def test_the_ridge_counts_distilled_images_without_mirror_images():
    assert make_run(ipc=2).ridge == pytest.approx(5e-4 * 6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: rcig_settings.published("cifar11", "clean", 1),
        lambda: rcig_settings.published("cifar10", "clean", 7),
        lambda: Settings(solver="newton"),
        lambda: Settings(initialisation="predicted"),
        lambda: Settings(solver="cg", published_quirks=True),
    ],
)
def test_settings_that_do_not_exist_are_refused(call):
    with pytest.raises(InputError):
        call()
