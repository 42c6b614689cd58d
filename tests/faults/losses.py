"""Losses of the first steps of experts, DANCE, DATM and RCIG with one thread and with two.

`python losses.py` prints them as {name: [losses with one thread, losses with two]}.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import small
import torch

from ddlnl import dance, datm, datm_initial, gsam, preprocess, rcig, rcig_meta, training, trajectories
from ddlnl.trajectories import ExpertRecipe

CPU = torch.device("cpu")
STEPS = 20


def data():
    train = small.image_set(per_class=30, side=16)
    return train, preprocess.fit(train.images, "normalise")


def tensors():
    train, fitted = data()
    targets = training.one_hot(torch.from_numpy(train.observed), train.num_classes)
    return fitted.apply(preprocess.to_float(train.images)), targets


NETWORK = replace(small.NETWORK, width=16)


def of_experts(losses: list) -> None:
    """Four epochs of five batches of GSAM."""
    recipe = ExpertRecipe(epochs=4, batch_size=18, lr=0.05, architecture=NETWORK)
    stack = training.initialise(lambda: NETWORK.build(3, 16, 3), [0], CPU)
    images, targets = tensors()
    with pytest.MonkeyPatch.context() as patch:
        step = gsam.step
        patch.setattr(gsam, "step", lambda *given: losses.append(found := step(*given)) or found)
        for epoch in range(1, 5):
            trajectories.train_epoch(stack, images, targets, recipe, [0], epoch)


def of_dance(losses: list) -> None:
    train, fitted = data()
    settings = replace(small.SETTINGS, factor=1, real_batch=24, architecture=NETWORK)
    experts = dance.train_experts(*tensors(), settings, 0)
    run = dance.Dance(train, 4, settings, experts, fitted, 0, CPU)
    state = dance.Momentum(dance.initial_images(train, 4, settings, 0), 3, 0.1, 0.5)
    losses.extend(run.iterate(state, iteration) for iteration in range(STEPS))


class Straight:
    """Trajectories of two experts that go straight on."""

    def __init__(self, size: int) -> None:
        source = torch.Generator().manual_seed(0)
        self.experts = 2
        self.start = 0.1 * torch.randn(2, size, generator=source)
        self.way = 0.02 * torch.randn(2, size, generator=source)

    def parameters(self, expert: int, epoch: int) -> torch.Tensor:
        return self.start[expert] + epoch * self.way[expert]


def of_datm(losses: list) -> None:
    train, fitted = data()
    settings = replace(small.MATCHING, iterations=STEPS, batch=12)
    network = NETWORK.build(3, 16, 3)
    experts = Straight(sum(parameter.numel() for parameter in network.parameters()))
    finals = torch.stack([experts.parameters(expert, 5) for expert in range(2)])
    initial = datm_initial.initial_set(train, 8, settings.initialisation, finals, network, fitted, 0)
    run = datm.Datm(initial, settings, experts, network, 0, CPU)
    losses.extend([run.iterate(iteration)] for iteration in range(STEPS))


def of_rcig(losses: list) -> None:
    train, fitted = data()
    settings = replace(small.GRADIENTS, iterations=STEPS, width=16, real_batch=48, inner_lr=1e-3)
    run = rcig.Rcig(train, 4, settings, fitted, 0, CPU)
    with pytest.MonkeyPatch.context() as patch:
        outer = rcig_meta.outer
        patch.setattr(rcig_meta, "outer", lambda *given: losses.append((found := outer(*given)).loss[None]) or found)
        run.begin()
        losses.clear()
        for iteration in range(STEPS):
            run.iterate(iteration)


def trace(of, threads: int) -> list[list[float]]:
    torch.set_num_threads(threads)
    of(losses := [])
    return [[part.double().mean().item() for part in step] for step in losses]


if __name__ == "__main__":
    everything = (of_experts, of_dance, of_datm, of_rcig)
    print(json.dumps({of.__name__: [trace(of, threads) for threads in (1, 2)] for of in everything}))
