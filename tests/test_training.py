from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small import NETWORK, image_set

from ddlnl import networks, preprocess, training
from ddlnl.training import Protocol, Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=3, batch_size=8, lr=0.05, augmentation="color_crop_flip_scale_rotate", cutmix=0.5)


@pytest.fixture(scope="module")
def data():
    train = image_set(per_class=7)  # 21 images: the last batch is short
    images = preprocess.fit(train.images, "normalise").apply(preprocess.to_float(train.images))
    return images, training.one_hot(torch.from_numpy(train.observed), 3)


def trained(data, seeds, recipe=RECIPE, **options):
    stack = training.initialise(lambda: NETWORK.build(3, 8, 3), seeds, CPU)
    training.train(stack, *data, recipe, seeds, **options)
    return stack


def test_a_network_in_a_stack_ends_as_it_would_alone(data):
    together = networks.flatten(trained(data, [3, 8, 1]).state())
    for row, seed in enumerate([3, 8, 1]):
        alone = networks.flatten(trained(data, [seed]).state())
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)


def test_training_equals_a_plain_loop_with_torch_optimisers(data):
    images, targets = data
    recipe = Recipe(epochs=6, batch_size=8, lr=0.05)
    network = training.initialise(lambda: NETWORK.build(3, 8, 3), [5], CPU)
    plain = NETWORK.build(3, 8, 3)
    plain.load_state_dict({name: tensor[0] for name, tensor in network.state().items()})
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [4, 5], gamma=0.2)
    for epoch in range(6):
        for index in torch.randperm(21, generator=training.generator(5, "epoch", epoch)).split(8):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(plain(images[index]), targets[index].argmax(1)).backward()
            optimiser.step()
        schedule.step()
    expected = networks.flatten({name: tensor.detach()[None] for name, tensor in plain.named_parameters()})
    torch.testing.assert_close(networks.flatten(trained(data, [5], recipe).state()), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("restart", [False, True])
def test_a_resumed_training_ends_with_the_same_bits(data, restart):
    class Memory:
        kept = None

        def load(self):
            return self.kept

        def save(self, step, state):
            if step == 1:
                self.kept = (1, {name: tensor.clone() for name, tensor in state().items()})

    memory, epochs = Memory(), []
    recipe = replace(RECIPE, decay_at=(0.4,), restart=restart)  # falls between the first and the second epoch
    whole = networks.flatten(trained(data, [1, 2], recipe, progress=memory).state())
    resumed = networks.flatten(trained(data, [1, 2], recipe, progress=memory, after_epoch=epochs.append).state())
    assert epochs == [2, 3]
    assert torch.equal(whole, resumed)


def test_momentum_begins_anew_where_the_rate_falls_if_the_recipe_says_so(data):
    """As when the optimiser is made again: training on from the parameters alone."""
    recipe = Recipe(epochs=4, batch_size=8, lr=0.05, decay_at=(0.5,), restart=True)
    stack = training.initialise(lambda: NETWORK.build(3, 8, 3), [0], CPU)
    states = []
    training.train(stack, *data, recipe, [0], after_epoch=lambda _: states.append(stack.state()))
    fresh = training.initialise(lambda: NETWORK.build(3, 8, 3), [0], CPU)
    fresh.load(states[1])
    optimiser = torch.optim.SGD(fresh.parameters.values(), lr=recipe.rate(2), momentum=0.9, weight_decay=5e-4)
    training._epoch(fresh, optimiser, *data, recipe, [training.generator(0, "epoch", 2)], training.Objective(), 2)
    assert torch.equal(networks.flatten(fresh.state()), networks.flatten(states[2]))
    without = networks.flatten(trained(data, [0], replace(recipe, restart=False)).state())
    assert not torch.equal(without, networks.flatten(states[3]))


def test_a_recipe_draws_its_augmentation_in_its_mode(data):
    single = replace(RECIPE, mode="single", cutmix=0.0)
    composed = networks.flatten(trained(data, [0], replace(single, mode="composed")).state())
    assert not torch.equal(composed, networks.flatten(trained(data, [0], single).state()))


def test_training_learns_the_classes(data):
    images, targets = data
    stack = trained(data, [0, 1], Recipe(epochs=60, batch_size=8, lr=0.05))
    assert (training.predict(stack, images).argmax(2) == targets.argmax(1)).double().mean(1).min() > 0.9


def test_training_stops_with_a_sentence_when_the_loss_is_not_finite(data):
    images, targets = data
    with pytest.raises(training.NotFinite, match="in epoch 1 of 3"):
        trained((images * float("nan"), targets), [0])


def test_training_stops_with_a_sentence_when_the_last_step_makes_the_logits_infinite(data):
    """One step of one epoch: its loss is that of the fresh network, and every weight after it is finite."""
    sentence = r"logits of network 1, 2 of 2 are not finite\. That was after epoch 1 of 1; .* than 1e\+20 may help"
    with pytest.raises(training.NotFinite, match=sentence):
        trained(data, [0, 1], Recipe(epochs=1, batch_size=64, lr=1e20))


def test_the_networks_that_diverged_are_named(data):
    stack = trained(data, [0, 1, 2], Recipe(epochs=1, lr=0.01))
    with torch.no_grad():
        list(stack.parameters.values())[-1][1] = float("inf")
    with pytest.raises(training.NotFinite, match=r"logits of network 2 of 3 are not finite"):
        training.predict(stack, data[0])


def test_networks_of_a_stack_start_from_their_own_seeds_and_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first = networks.flatten(training.initialise(lambda: NETWORK.build(3, 8, 3), [4, 9], CPU).state())
    second = networks.flatten(training.initialise(lambda: NETWORK.build(3, 8, 3), [9], CPU).state())
    assert torch.equal(first[1], second[0])
    assert not torch.equal(first[0], first[1])
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_protocol_bounds_its_steps_and_spreads_its_tests():
    protocol = Protocol(NETWORK, Recipe(epochs=1500), test_points=6)
    assert protocol.recipe_for(2000).epochs == 1500
    assert protocol.tested_epochs(1500) == [250, 500, 750, 1000, 1250, 1500]
    bounded = Protocol(NETWORK, Recipe(epochs=1500), max_steps=320)
    assert bounded.recipe_for(2000).epochs == 10  # 32 steps per epoch
    assert bounded.recipe_for(10).epochs == 320
    assert bounded.recipe_for(10**6).epochs == 1
    assert [bounded.recipe_for(2000).rate(epoch) for epoch in (5, 6, 8)] == pytest.approx([0.01, 0.002, 0.0004])
