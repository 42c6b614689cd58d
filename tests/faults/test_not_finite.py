"""NaN or infinity anywhere in a run stops it, and the sentence names what, when, and from where it would resume."""

from __future__ import annotations

import itertools
import random
import re
import warnings
from dataclasses import dataclass

import pytest
import small
from test_study import archive_path as archive_path

from ddlnl import dance, datm, rcig, store, study, training
from ddlnl.cells import Cell

PROMISE = "NaN and infinity stop a run that says where"
ITERATIONS = 4  # of every distiller of the small profile


@dataclass(frozen=True)
class Place:
    """A tensor of a run: the class whose iteration is disturbed, and how to find the tensor."""

    method: str
    owner: type
    find: object


PLACES = {
    "images of DANCE": Place("dance", dance._Distillation, lambda run: run.images.images),
    "velocity of DANCE": Place("dance", dance._Distillation, lambda run: run.images.velocity),
    "experts of DANCE": Place("dance", dance._Distillation, lambda run: run.run.trained),
    "images of DATM": Place("datm", datm.Datm, lambda run: run.images),
    "labels of DATM": Place("datm", datm.Datm, lambda run: run.logits),
    "step size of DATM": Place("datm", datm.Datm, lambda run: run.step_size),
    "velocities of DATM": Place("datm", datm.Datm, lambda run: run.velocities["images"]),
    "images of RCIG": Place("rcig", rcig.Rcig, lambda run: run.images),
    "labels of RCIG": Place("rcig", rcig.Rcig, lambda run: run.labels),
    "temperature of RCIG": Place("rcig", rcig.Rcig, lambda run: run.log_temperature),
    "networks of RCIG": Place("rcig", rcig.Rcig, lambda run: run.pool.base),
}
VALUES = [float("nan"), float("inf"), -float("inf")]


def disturbed(monkeypatch, place: Place, at: int, value: float, draws: random.Random) -> None:
    """Iteration `at` finds this value in one number of the tensor (in one of each network, where it has many)."""
    iterate = place.owner.iterate

    def spoilt(run, iteration):
        if iteration == at:
            tensor = place.find(run)
            where = [draws.randrange(size) for size in tensor.shape]
            if tensor.dim() == 2 and tensor.shape[1] > 100:
                where[0] = slice(None)
            tensor[tuple(where)] = value
        return iterate(run, iteration)

    monkeypatch.setattr(place.owner, "iterate", spoilt)


@pytest.mark.parametrize("name", PLACES)
def test_a_distillation_stops_and_names_iteration_and_last_good_checkpoint(
    archive_path,
    tmp_path,
    monkeypatch,
    tries,
    tally,
    name,
):
    place, draws = PLACES[name], random.Random(name)
    cases = list(itertools.product(range(ITERATIONS), VALUES))
    for number, (at, value) in enumerate(draws.sample(cases, tries(2, 8))):
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a run that goes wrong may also warn
            patch.setattr(store.Progress, "save", always(store.Progress.save))
            disturbed(patch, place, at, value, draws)
            cell = Cell(archive_path, "symmetric:0.5", place.method, 2, 0, "demo")
            with pytest.raises(RuntimeError) as stopped:
                study.run([cell], tmp_path / str(number), device="cpu", progress=False)
        message = str(stopped.value)
        assert re.search(rf"{place.method.upper()}: [\w ]+ (is|are) not finite in iteration {at} of 4", message), (
            message
        )
        assert f"The last good checkpoint: the state before iteration {at} is kept." in message
        assert store.table(tmp_path / str(number)).empty
        tally(PROMISE)


def always(save):
    def every_time(self, step, state):
        self.interval = 0.0
        save(self, step, state)

    return every_time


@pytest.mark.parametrize("method", ["full", "dance", "random"])
def test_a_training_stops_and_names_the_epoch(archive_path, tmp_path, monkeypatch, tries, tally, method):
    draws = random.Random(method)
    for number in range(tries(2, 6)):
        at, value = draws.randrange(3), draws.choice(VALUES)
        with monkeypatch.context() as patch:
            spoil_epoch(patch, at, value)
            cell = Cell(archive_path, "symmetric:0.5", method, 0 if method == "full" else 2, 0, "demo")
            with pytest.raises(RuntimeError, match=r"loss became (nan|inf) in epoch \d+ of \d+"):
                study.run([cell], tmp_path / str(number), device="cpu", progress=False)
        assert store.table(tmp_path / str(number)).empty
        tally(PROMISE)


def spoil_epoch(patch, at: int, value: float) -> None:
    """One pixel of every training image is this value in epoch `at` of the last training."""
    epoch = training._epoch

    def spoilt(stack, optimiser, images, targets, recipe, generators, objective, number):
        if number == min(at, recipe.epochs - 1):
            images = images.clone()
            images[:, 0, 0, 0] = value
        return epoch(stack, optimiser, images, targets, recipe, generators, objective, number)

    patch.setattr(training, "_epoch", spoilt)


def test_the_small_profile_has_as_many_iterations_as_the_tests_take():
    settings = (small.SETTINGS, small.MATCHING, small.GRADIENTS)
    assert {one.iterations for one in settings} == {ITERATIONS}
