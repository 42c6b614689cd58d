"""DATM: where it starts, what it draws, when it updates, and that it resumes as if it had never stopped."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from small import MATCHING as SETTINGS
from small import NETWORK, image_set

from ddlnl import datm, datm_initial, networks, preprocess, training
from ddlnl.errors import InputError
from ddlnl.profiles import PROFILES

CPU = torch.device("cpu")


class Trajectories:
    """Parameters of experts that drift at random; only what the loop reads."""

    def __init__(self, experts: int, epochs: int, size: int) -> None:
        source = torch.Generator().manual_seed(0)
        self.experts = experts
        steps = 0.02 * torch.randn(experts, epochs, size, generator=source)
        self.all = 0.1 * torch.randn(experts, 1, size, generator=source) + steps.cumsum(1)

    def parameters(self, expert: int, epoch: int) -> torch.Tensor:
        return self.all[expert, epoch].clone()

    def final(self, expert: int) -> torch.Tensor:
        return self.parameters(expert, -1)


def make_run(settings=SETTINGS, experts=3, ipc=2, seed=0) -> datm.Datm:
    train = image_set()
    network = NETWORK.build(3, 8, 3)
    size = sum(parameter.numel() for parameter in network.parameters())
    trajectories = Trajectories(experts, 5, size)
    preprocessing = preprocess.fit(train.images, "zca")
    finals = torch.stack([trajectories.final(expert) for expert in range(experts)])
    initial = datm_initial.initial_set(train, ipc, settings.initialisation, finals, network, preprocessing, seed)
    return datm.Datm(initial, settings, trajectories, network, seed, CPU)


class Memory:
    """A `training.Progress` that keeps the state of every step."""

    def __init__(self, found=None) -> None:
        self.found, self.kept = found, {}

    def load(self):
        return self.found

    def save(self, step, state) -> None:
        self.kept[step] = copy.deepcopy({name: tensor.clone() for name, tensor in state().items()})


def variables(run: datm.Datm) -> list[torch.Tensor]:
    return [run.images.clone(), run.logits.clone(), run.step_size.clone()]


def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one():
    whole, memory = make_run(), Memory()
    assert list(datm.distil(whole, memory)) == [0, 2, 4]
    for stop in (1, 2, 3):
        again = make_run()
        later = list(datm.distil(again, Memory((stop, copy.deepcopy(memory.kept[stop])))))
        assert later == [point for point in (0, 2, 4) if point >= stop]
        for mine, theirs in zip(variables(again), variables(whole), strict=True):
            assert torch.equal(mine, theirs)
        assert again.report(4) == whole.report(4)


def test_the_set_before_the_first_update_is_always_a_checkpoint():
    assert datm.checkpoints(replace(SETTINGS, evaluate_at=(1.0,))) == [0, 4]


def test_an_iteration_moves_all_three_variables_by_momentum_sgd():
    run = make_run()
    before, seen = variables(run), []
    original = datm.matching_gradient

    def spy(*arguments, **named):
        seen.append(original(*arguments, **named))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datm, "matching_gradient", spy)
        run.iterate(0)
        run.iterate(1)
    rates, momenta = (1.0, 1.0, 1e-3), (0.5, 0.9, 0.5)
    for index, (rate, momentum) in enumerate(zip(rates, momenta, strict=True)):
        first, second = (found[1 + index] for found in seen)
        expected = before[index] - rate * first - rate * (momentum * first + second)
        torch.testing.assert_close(variables(run)[index], expected, rtol=1e-6, atol=1e-7)


def test_a_closed_gate_leaves_images_labels_step_size_and_momenta_alone():
    run = make_run()
    run.iterate(0)
    kept = run.state()
    kept = {name: tensor.clone() for name, tensor in kept.items() if name not in ("losses", "steps")}
    run.settings = replace(run.settings, threshold=0.0)
    run.iterate(1)
    for name, tensor in kept.items():
        assert torch.equal(run.state()[name], tensor), name
    assert run.report(2)["gated"] == 2


@pytest.mark.parametrize(("iterations", "patience"), [(300, 200), (5, 5)])
def test_a_run_that_never_opens_the_gate_stops_and_says_what_helps(iterations, patience):
    run = make_run(replace(SETTINGS, threshold=1e-9, iterations=iterations, steps=1))
    with pytest.raises(training.NoProgress, match=rf"first {patience} iterations.*smaller step_size"):
        list(datm.distil(run))


def test_an_iteration_reads_two_snapshots(monkeypatch):
    run, read = make_run(), []
    original = run.trajectories.parameters
    monkeypatch.setattr(run.trajectories, "parameters", lambda *which: read.append(which) or original(*which))
    run.iterate(0)
    (expert, first), (same, second) = read
    assert (same, second) == (expert, first + SETTINGS.target_epochs)


def test_a_student_that_diverges_is_gated_and_nan_stops_the_run_with_the_last_good_checkpoint(monkeypatch):
    run, memory, exact, calls = make_run(), Memory(), datm.matching_gradient, itertools.count()

    def broken(*arguments, **named):
        loss, *gradients = exact(*arguments, **named)
        return {0: loss * torch.inf, 2: loss * torch.nan}.get(next(calls), loss), *gradients

    monkeypatch.setattr(datm, "matching_gradient", broken)
    before, checkpoints = variables(run), datm.distil(run, memory)
    assert next(checkpoints) == 0
    run.iterate(0)
    assert run.report(1) == {"loss": [pytest.approx(1e30)], "step_size": [0.05], "gated": 1, "clamped": 0}
    assert all(torch.equal(*pair) for pair in zip(before, variables(run), strict=True))
    memory.load = lambda: (max(memory.kept), {})
    with pytest.raises(training.NotFinite, match=r"loss is not finite in iteration 1 .* before iteration 1 is kept\."):
        list(checkpoints)


@pytest.mark.parametrize("name", ["images", "logits", "step_size"])
def test_a_value_that_is_not_finite_stops_the_run_and_is_named(name):
    run = make_run()
    getattr(run, name).fill_(torch.nan)
    with pytest.raises(training.NotFinite, match=r"is not finite in iteration 0 of 4"):
        run.iterate(0)


def test_an_expert_that_is_not_finite_is_named_with_its_epoch():
    run = make_run()
    run.trajectories.all.fill_(torch.inf)
    with pytest.raises(training.NotFinite, match=r"start is not finite in iteration 0 of 4 \(expert \d, epoch \d\)"):
        run.iterate(0)


def test_a_step_size_that_would_turn_negative_is_kept_positive_with_a_warning():
    run = make_run()
    steep = {"images": run.images * 0, "logits": run.logits * 0, "step_size": torch.tensor(1e4)}
    with pytest.warns(UserWarning, match="step size became .* in iteration 7 and was set to 1e-06"):
        run._update(steep, 7)
    assert float(run.step_size) == pytest.approx(1e-6)
    assert run.report(1)["clamped"] == 1


def test_a_precision_whose_gradient_points_elsewhere_is_refused():
    run = make_run(replace(SETTINGS, precision="bf16"))
    exact = datm.matching_gradient

    def coarse(*arguments, precision, **named):
        loss, images, logits, step = exact(*arguments, precision="float32", **named)
        return (
            loss,
            images + (0.1 * images.norm() * torch.ones_like(images) if precision == "bf16" else 0),
            logits,
            step,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datm, "matching_gradient", coarse)
        with pytest.raises(InputError, match=r"gradient of the images has a cosine of 0\.\d+ .* must have 0\.999"):
            next(datm.distil(run))


def test_every_expert_serves_once_before_any_serves_again():
    order = [datm.expert_of(iteration, 23, 5) for iteration in range(46)]
    assert Counter(order[:23]) == Counter(order[23:]) == Counter(range(23))
    assert order[:23] != order[23:]
    files = [expert // 10 for expert in order[:23]]
    assert sum(a != b for a, b in itertools.pairwise(files)) == 2  # a file is gone through at once


def test_minibatches_use_every_image_once_before_any_again():
    run = make_run(replace(SETTINGS, steps=5, batch=2))
    drawn = run.draw(0)
    assert drawn.minibatches.shape == (5, 2)
    assert sorted(drawn.minibatches[:3].flatten().tolist()) == list(range(6))
    assert len(set(drawn.minibatches[3:].flatten().tolist())) == 4
    operations = [tuple(one.codes.tolist()) for one in make_run(replace(SETTINGS, steps=40)).draw(0).augmentations]
    assert {len(one) for one in operations} <= {1, 3}  # one operation each; colour is three codes
    assert len(set(operations)) > 2
    starts = {make_run().draw(iteration).start for iteration in range(20)}
    assert starts == {0, 1}


def test_initial_images_carry_their_observed_class_and_expert_logits():
    train, network = image_set(per_class=20), NETWORK.build(3, 8, 3)
    preprocessing = preprocess.fit(train.images, "zca")
    images, targets = (
        preprocessing.apply(preprocess.to_float(train.images)),
        training.one_hot(torch.from_numpy(train.observed), 3),
    )
    stack = training.initialise(lambda: NETWORK.build(3, 8, 3), [0, 1], CPU)
    training.train(stack, images, targets, training.Recipe(epochs=20, lr=0.05), [0, 1])
    finals = networks.flatten(stack.state())
    found = datm_initial.initial_set(train, 4, "predicted", finals, network, preprocessing, 0)
    assert found.images.shape == (12, 3, 8, 8)
    logits = [datm_initial.Experts(finals, network, preprocessing).logits(k, images) for k in range(2)]
    for row in range(12):
        label = row // 4
        index = int((images - found.images[row]).flatten(1).abs().sum(1).argmin())
        assert train.observed[index] == label
        agreeing = [one[index] for one in logits if int(one[index].argmax()) == label]
        assert agreeing
        torch.testing.assert_close(found.logits[row], torch.stack(agreeing).mean(0), rtol=1e-4, atol=1e-5)
    assert found.report == {"wrong_labels": 0, "filled_up": 0, "without_agreement": 0}


def test_a_class_no_expert_predicts_is_filled_up_and_reported():
    train, network = image_set(), NETWORK.build(3, 8, 3)
    size = sum(parameter.numel() for parameter in network.parameters())
    constant = torch.zeros(2, size)
    constant[:, -3:] = torch.tensor([0.0, 5.0, 0.0])  # every image is predicted as class 1
    preprocessing = preprocess.fit(train.images, "zca")
    found = datm_initial.initial_set(train, 3, "predicted", constant, network, preprocessing, 0)
    assert found.report == {"wrong_labels": 0, "filled_up": 6, "without_agreement": 6}
    torch.testing.assert_close(found.logits, constant[0, -3:].expand(9, 3))


def test_real_initialisation_takes_the_logits_of_one_expert():
    run = make_run(replace(SETTINGS, initialisation="real"))
    experts = [networks.unflatten(final, run.network) for final in run.trajectories.all[:, -1]]
    logits = [torch.func.functional_call(run.network, one, (run.images,)) for one in experts]
    assert sum(torch.allclose(one, run.logits, atol=1e-5) for one in logits) == 1


def test_a_student_recipe_follows_the_published_schedule():
    recipe = replace(PROFILES["paper"].datm.student.recipe, lr=0.02)
    assert [recipe.rate(epoch) for epoch in (0, 501, 502, 1000)] == pytest.approx([0.02, 0.02, 0.002, 0.002])
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.weight_decay) == (1001, 128, 0.9, 5e-4)
    assert recipe.restart
