"""A convolution that stands still is torch's own: value, derivative and transpose, whichever way it takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import jvp, vjp

from ddlnl import fixed_convolutions
from ddlnl.generators import generator


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, "fixed convolutions"), dtype=torch.float64)


@pytest.mark.parametrize(
    ("channels", "padding", "way"),
    [
        (3, 1, fixed_convolutions.Patches),
        (1, 3, fixed_convolutions.Patches),
        (16, 1, fixed_convolutions.Direct),
        (16, 3, fixed_convolutions.Direct),
        (64, 1, fixed_convolutions.Products),
    ],
)
@pytest.mark.parametrize("moves", [True, False])
def test_value_derivative_and_transpose_are_those_of_torch(channels, padding, way, moves):
    x, dx = (normal(2, channels, 6, 9, seed=seed) for seed in (0, 1))
    weight, dweight = (normal(5, channels, 3, 3, seed=seed) for seed in (2, 3))
    bias, dbias = normal(5, seed=4), normal(5, seed=5)

    def run(x, weight, bias):
        return F.conv2d(x, weight, bias, padding=padding)

    convolution = fixed_convolutions.fix(x, weight, padding)
    assert type(convolution) is way
    directions = (dx if moves else torch.zeros_like(x), dweight, dbias)
    value, pushed = jvp(run, (x, weight, bias), directions)
    torch.testing.assert_close(convolution.value(bias), value)
    torch.testing.assert_close(convolution.push(dx if moves else None, dweight, dbias), pushed)
    cotangent = normal(*value.shape, seed=6)
    found = convolution.pull(cotangent, into_x=moves)
    expected = vjp(run, x, weight, bias)[1](cotangent)
    for mine, other in zip(found[0 if moves else 1 :], expected[0 if moves else 1 :], strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("channels", [3, 64])
def test_results_are_channels_last_as_the_fused_operators_read_them(channels):
    convolution = fixed_convolutions.fix(normal(2, channels, 8, 8), normal(5, channels, 3, 3, seed=1), 1)
    for result in (convolution.value(normal(5)), convolution.push(None, normal(5, channels, 3, 3, seed=2), normal(5))):
        assert result.is_contiguous(memory_format=torch.channels_last)
