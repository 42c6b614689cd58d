"""Every public operator refuses what does not fit with an exception that can be read; nothing crashes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from ddlnl import augment, ops
from ddlnl.generators import generator


def good() -> dict[Callable, dict[str, object]]:
    """Arguments that every operator takes."""
    source = generator(0, "bad input")

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    drawn = augment.draw("color_crop_cutout", 4, (6, 6), source)
    x, row, labels = random(4, 3, 6, 6), random(3), torch.tensor([0, 1, 1, 0])
    return {
        ops.augment: {"images": x, "table": drawn.table, "codes": drawn.codes, "index": torch.arange(4)},
        ops.norm_relu_pool: {"x": x, "weight": row, "bias": row},
        ops.norm_relu_pool_tangent: {"x": x, "dx": x, "weight": row, "dweight": row, "bias": row, "dbias": row},
        ops.softplus_pool: {"x": x, "beta": 2.0},
        ops.softplus_pool_tangent: {"x": x, "dx": x, "beta": 2.0},
        ops.softplus_pool_backward: {"gradient": random(4, 3, 3, 3), "x": x, "beta": 2.0},
        ops.trajectory_distance: {"student": row, "target": row, "start": row},
        ops.class_mean_distance: {
            "real": random(4, 5),
            "real_labels": labels,
            "synthetic": random(4, 5),
            "synthetic_labels": labels,
            "num_classes": 2,
        },
    }


def worse(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensor with another rank, type, device or size."""
    yield "of rank 0", tensor.flatten()[0]
    yield "with two dimensions more", tensor[None, None]
    yield "complex", tensor.to(torch.complex64)
    yield "of truth values", tensor.to(torch.bool)
    yield "of small integers", tensor.to(torch.int8)
    yield "on no device", tensor.to("meta")
    for dim in range(tensor.dim()):
        yield f"longer in dimension {dim}", torch.cat([tensor, tensor.narrow(dim, 0, 1)], dim)


# What fits after all: more operations, rows for one index less, a size that only another tensor would contradict.
FITS = {
    ("augment", "codes", "longer in dimension 0"),
    ("augment", "images", "longer in dimension 0"),
    ("augment", "images", "longer in dimension 1"),
    ("augment", "images", "longer in dimension 2"),
    ("augment", "images", "longer in dimension 3"),
    ("norm_relu_pool", "x", "longer in dimension 0"),
    ("norm_relu_pool", "x", "longer in dimension 2"),
    ("norm_relu_pool", "x", "longer in dimension 3"),
    *(("softplus_pool", "x", f"longer in dimension {dim}") for dim in range(4)),
    ("softplus_pool", "x", "on no device"),
    ("softplus_pool_backward", "x", "longer in dimension 2"),
    ("softplus_pool_backward", "x", "longer in dimension 3"),
}
CALLS = [
    pytest.param(operator, name, bad, id=f"{operator.__name__}-{name}-{how.replace(' ', '-')}")
    for operator, arguments in good().items()
    for name, value in arguments.items()
    if isinstance(value, Tensor)
    for how, bad in worse(value)
    if (operator.__name__, name, how) not in FITS
]
CALLS += [
    pytest.param(ops.class_mean_distance, "num_classes", 0, id="no-classes"),
    pytest.param(ops.class_mean_distance, "num_classes", 1, id="a-label-beyond-the-classes"),
    pytest.param(ops.class_mean_distance, "real_labels", torch.tensor([0, -1, 0, 1]), id="a-negative-label"),
    *(pytest.param(ops.softplus_pool, "beta", beta, id=f"beta-{beta}") for beta in (0, -1, 1e7, math.inf, math.nan)),
    pytest.param(ops.augment, "codes", torch.tensor([99], dtype=torch.int32), id="an-unknown-operation"),
    pytest.param(ops.augment, "index", torch.tensor([0, 1, 2, 4]), id="an-index-beyond-the-images"),
    pytest.param(ops.augment, "index", torch.tensor([0, 1, 2, -1]), id="a-negative-index"),
]


def test_the_good_arguments_are_taken():
    for operator, arguments in good().items():
        operator(**arguments)


def test_there_are_at_least_100_bad_calls():
    assert len(CALLS) >= 100


@pytest.mark.parametrize(("operator", "name", "bad"), CALLS)
def test_a_bad_argument_is_refused_with_a_sentence(operator, name, bad):
    with pytest.raises((RuntimeError, ValueError, TypeError, IndexError), match=r"\w+ \w+ \w+"):
        operator(**good()[operator] | {name: bad})
