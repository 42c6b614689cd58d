"""Baselines that learn with noisy labels: losses and gradients are those of the papers, and training repeats."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import NETWORK, image_set

from ddlnl import evaluation, noise, preprocess, robust, training
from ddlnl.training import Protocol, Recipe

PROTOCOL = Protocol(NETWORK, Recipe(epochs=4, batch_size=8, lr=0.05, cutmix=0.5), test_points=4)
SETTINGS = robust.Settings(forget_rate=0.4, gradual_epochs=2)


@pytest.fixture
def batch():
    """Logits of two networks for five images of four classes, with labels and which images they are."""
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, generator=source, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(4, (2, 5), generator=source)
    index = torch.stack([torch.randperm(9, generator=source)[:5] for _ in range(2)])
    targets = torch.nn.functional.one_hot(labels, 4).double()
    return SimpleNamespace(logits=logits, labels=labels, targets=targets, index=index, p=logits.detach().softmax(2))


def gradient(objective, batch, epoch=0):
    """Its value, and B times its gradient, since a network's loss is the mean over B images."""
    value = objective(batch.logits, batch.targets, batch.index, epoch)
    (found,) = torch.autograd.grad(value, batch.logits)
    return float(value.detach()), 5 * found


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_gce_has_the_value_and_the_gradient_of_its_formula(batch, q):
    own = batch.p.gather(2, batch.labels[..., None])
    value, found = gradient(robust.GCE(q), batch)
    assert value == pytest.approx(float(((1 - own**q) / q).mean(1).sum()), rel=1e-12)
    # (1 - p_y^q) / q by the logits: -p_y^(q-1) dp_y/dz = p_y^q (p - y), the cross-entropy's gradient weighed by p_y^q.
    torch.testing.assert_close(found, own**q * (batch.p - batch.targets), rtol=1e-12, atol=1e-14)


def test_gce_becomes_the_cross_entropy_as_q_goes_to_zero_and_takes_class_probabilities_as_targets(batch):
    close = gradient(robust.GCE(1e-7), batch)
    exact = gradient(training.Objective(), batch)
    assert close[0] == pytest.approx(exact[0], rel=1e-5)
    torch.testing.assert_close(close[1], exact[1], rtol=1e-5, atol=1e-6)
    mixed = 0.3 * batch.targets + 0.7 * batch.targets.flip(1)
    flipped = SimpleNamespace(**vars(batch) | {"targets": batch.targets.flip(1)})
    whole = robust.GCE(0.7)(batch.logits, mixed, batch.index, 0).item()
    parts = 0.3 * gradient(robust.GCE(0.7), batch)[0] + 0.7 * gradient(robust.GCE(0.7), flipped)[0]
    assert whole == pytest.approx(parts, rel=1e-12)


def test_gce_keeps_a_finite_gradient_where_a_probability_underflows():
    logits = torch.tensor([[[0.0, 5e3]]], requires_grad=True)
    loss = robust.GCE(0.7)(logits, torch.tensor([[[1.0, 0.0]]]), torch.zeros(1, 1, dtype=torch.long), 0)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_elr_has_the_value_and_the_gradient_of_its_formula(batch):
    elr = robust.ELR(2, 9, 4, beta=0.7, weight=3.0)
    gradient(elr, batch)  # a first step fills the memory
    past = 0.7 * (0.3 * batch.p) + 0.3 * batch.p
    inner = (past * batch.p).sum(2, keepdim=True)
    entropy = -(batch.targets * batch.p.log()).sum(2)
    value, found = gradient(elr, batch)
    assert value == pytest.approx(float((entropy + 3 * (1 - inner[..., 0]).log()).mean(1).sum()), rel=1e-12)
    # Lemma 2 of the paper: p - y + lambda g with g_c = p_c / (1 - <p, t>) sum_k (t_k - t_c) p_k.
    g = batch.p / (1 - inner) * (inner - past)
    torch.testing.assert_close(found, batch.p - batch.targets + 3 * g, rtol=1e-11, atol=1e-13)


def test_elr_remembers_every_image_of_every_network_by_itself(batch):
    elr = robust.ELR(2, 9, 4, beta=0.7, weight=3.0)
    gradient(elr, batch)
    for network in range(2):
        for image in range(9):
            place = (batch.index[network] == image).nonzero()
            expected = 0.3 * batch.p[network, place[0, 0]] if len(place) else torch.zeros(4, dtype=torch.float64)
            torch.testing.assert_close(elr.memory[network, image], expected)


def test_each_network_of_a_coteaching_pair_learns_the_images_that_the_other_finds_easy(batch):
    losses = -(batch.targets * batch.p.log()).sum(2).numpy()
    value, found = gradient(robust.CoTeaching(0.4, 10), batch, epoch=10)
    easy = [set(np.argsort(losses[1 - network])[:3]) for network in range(2)]  # 0.6 of 5
    assert easy[0] != easy[1]
    assert value == pytest.approx(sum(losses[network, list(easy[network])].mean() for network in range(2)), rel=1e-12)
    for network in range(2):
        for image in range(5):
            own = (batch.p - batch.targets)[network, image] * 5 / 3 if image in easy[network] else torch.zeros(4)
            torch.testing.assert_close(found[network, image], own.double(), rtol=1e-12, atol=1e-14)


def test_coteaching_forgets_nothing_at_first_and_its_full_share_after_the_gradual_epochs():
    objective = robust.CoTeaching(0.4, 10)
    assert [objective.kept(epoch, 100) for epoch in (0, 5, 10, 19)] == [100, 80, 60, 60]
    assert robust.CoTeaching(1.0, 1).kept(5, 64) == 1


@pytest.fixture(scope="module")
def data():
    train = noise.corrupt(image_set(per_class=20), "symmetric:0.4", seed=1)
    images = preprocess.fit(train.images, "normalise").apply(preprocess.to_float(train.images))
    targets = training.one_hot(torch.from_numpy(train.observed), 3)
    return images, targets, {"test": (images, torch.from_numpy(train.clean))}


def train(data, method, seeds, settings=SETTINGS, progress=None):
    images, targets, exams = data
    objective = robust.objective(method, settings, len(seeds), *targets.shape)
    return evaluation.train_students(images, targets, robust.protocol(PROTOCOL), exams, seeds, progress, objective)


@pytest.mark.parametrize("method", robust.METHODS)
def test_training_by_a_baseline_repeats_and_a_student_does_not_depend_on_the_others(data, method):
    together = train(data, method, [3, 4])
    assert together == train(data, method, [3, 4])
    alone = train(data, method, [4])
    assert together.epochs == [1, 2, 3, 4]
    np.testing.assert_allclose(together.test[1], alone.test[0], atol=0.02)
    assert together.test[0] != together.test[1]


@pytest.mark.parametrize("method", robust.METHODS)
def test_a_resumed_baseline_ends_with_the_same_accuracies(data, method):
    class Memory:
        kept = None

        def load(self):
            return self.kept

        def paused(self):
            return contextlib.nullcontext()

        def save(self, step, state):
            if step == 2:
                self.kept = (2, {name: tensor.clone() for name, tensor in state().items()})

    memory = Memory()
    whole = train(data, method, [3], progress=memory)
    assert memory.kept is not None
    assert train(data, method, [3], progress=memory) == whole


def test_without_noise_terms_the_baselines_are_the_full_set_without_cutmix(data):
    """GCE with q near 0, ELR without weight and Co-teaching that forgets nothing all minimise the cross-entropy."""
    images, targets, exams = data
    plain = Protocol(NETWORK, Recipe(epochs=4, batch_size=8, lr=0.05), test_points=4)
    expected = evaluation.train_students(images, targets, plain, exams, [3]).test
    for method, settings in {
        "gce": robust.Settings(gce_q=1e-6),
        "elr": robust.Settings(elr_lambda=0.0),
        "coteaching": robust.Settings(forget_rate=0.0),
    }.items():
        found = train(data, method, [3], settings).test
        np.testing.assert_allclose(found, expected, atol=0.02)
