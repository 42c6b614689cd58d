from __future__ import annotations

import pytest
import torch

from ddlnl import loop
from ddlnl.training import NotFinite


class Counter:
    """A run whose only variable counts its iterations, and is not finite in iteration `fails`."""

    def __init__(self, fails=None):
        self.done, self.begun, self.fails = torch.tensor(0), 0, fails

    def begin(self):
        self.begun += 1

    def iterate(self, iteration):
        assert iteration == self.done
        if iteration == self.fails:
            raise NotFinite(f"Something is not finite in iteration {iteration}.")
        self.done += 1

    def state(self):
        return {"done": self.done}

    def load(self, state):
        self.done.copy_(state["done"])


class Every:
    """A place for states that keeps those before iterations that are multiples of `step`."""

    def __init__(self, step):
        self.step, self.kept = step, None

    def load(self):
        return self.kept

    def save(self, iteration, state):
        if iteration % self.step == 0:
            self.kept = iteration, {name: tensor.clone() for name, tensor in state().items()}


def test_every_checkpoint_is_seen_before_its_iteration_and_the_last_one_after_all():
    run = Counter()
    assert [(iteration, int(run.done)) for iteration in loop.follow(run, [0, 2, 5])] == [(0, 0), (2, 2), (5, 5)]
    assert run.begun == 1


def test_a_run_that_resumes_begins_where_it_was_kept_and_not_anew():
    place = Every(3)
    list(loop.follow(Counter(), [0, 2, 5], place))
    again = Counter()
    assert list(loop.follow(again, [0, 2, 5], place)) == [5]
    assert again.begun == 0
    assert again.done == 5


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (Every(3), "iteration 4. The last good checkpoint: the state before iteration 3 is kept."),
        (Every(9), "iteration 4. The last good checkpoint: the state before iteration 0 is kept."),
        (None, "iteration 4. The last good checkpoint: no earlier state was kept."),
    ],
)
def test_a_run_that_is_not_finite_stops_and_says_from_where_it_would_resume(place, said):
    with pytest.raises(NotFinite) as stopped:
        list(loop.follow(Counter(fails=4), [5], place))
    assert str(stopped.value) == f"Something is not finite in {said}"


def test_checkpoints_are_parts_of_the_run_and_its_end():
    assert loop.checkpoints(10, (0.5, 0.0, 0.51)) == [0, 5, 10]
    assert loop.checkpoints(3, (1.0,)) == [3]
