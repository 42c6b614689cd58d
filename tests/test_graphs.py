"""A captured function gives what the plain one gives, or stays plain. What capturing does on a GPU is played here by
calls that read the same fixed tensors, as a graph does."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from ddlnl.graphs import Captured


def double(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * x, x + y


class Recorded:
    """A capture that fills the same results anew at each replay, and counts them."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, function, inputs):
        self.captured += 1
        outputs = function(*inputs)

        def replay():
            self.replayed += 1
            for mine, fresh in zip(outputs, function(*inputs), strict=True):
                mine.copy_(fresh)
            return outputs

        return replay


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source), torch.randn(shape, generator=source)


def test_a_replay_reads_the_tensors_of_its_own_call_and_leaves_earlier_results_alone():
    capture = Recorded()
    captured = Captured(double, capture)
    calls = [pair(3, seed=seed) for seed in range(4)]
    results = [captured(*call) for call in calls]
    for result, call in zip(results, calls, strict=True):
        torch.testing.assert_close(result, double(*call), rtol=0, atol=0)
    assert (capture.captured, capture.replayed) == (1, 4)  # the first replay is the one that is compared


def test_every_set_of_shapes_is_captured_once():
    capture = Recorded()
    captured = Captured(double, capture)
    for shape in ((3,), (4,), (3,), (4,)):
        torch.testing.assert_close(captured(*pair(*shape)), double(*pair(*shape)), rtol=0, atol=0)
    assert capture.captured == 2


def test_where_capturing_fails_the_function_runs_plainly_after_one_warning():
    def fails(function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    captured = Captured(double, fails)
    with pytest.warns(UserWarning, match="A CUDA graph is not used.*not permitted when stream is capturing"):
        captured(*pair(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(captured(*pair(3, seed=1)), double(*pair(3, seed=1)), rtol=0, atol=0)


def test_a_replay_that_gives_something_else_is_not_used():
    captured = Captured(double, lambda function, inputs: lambda: tuple(one + 1 for one in function(*inputs)))
    with pytest.warns(UserWarning, match="its replay gives another result"):
        captured(*pair(3))
    torch.testing.assert_close(captured(*pair(3, seed=1)), double(*pair(3, seed=1)), rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_cuda_graph_of_a_gradient_equals_the_plain_gradient():
    def gradient(x, y):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(((x @ y).relu() ** 2).sum(), x)

    captured = Captured(gradient)
    for seed in range(3):
        given = [one.cuda() for one in pair(32, 32, seed=seed)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(captured(*given), gradient(*given))
