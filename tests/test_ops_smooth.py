"""Fused softplus and pool are their twins: values, every derivative, every shape and memory layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops_block import LAYOUTS, compiled, devices, normal
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vmap

from ddlnl import ops
from ddlnl.ops import reference

OPERATORS = ("softplus_pool", "softplus_pool_tangent", "softplus_pool_backward")
TOLERANCE = {torch.float32: 4e-7, torch.float64: 1e-14}


def arguments(name, shape, seed=0, dtype=torch.float64, layout="planes", scale=1.0, device="cpu"):
    x, dx = (LAYOUTS[layout](normal(*shape, seed=seed + i, dtype=dtype)).to(device) for i in range(2))
    g = normal(*shape[:2], shape[2] // 2, shape[3] // 2, seed=seed + 2, dtype=dtype).to(device)
    return {OPERATORS[0]: [scale * x], OPERATORS[1]: [scale * x, dx], OPERATORS[2]: [g, scale * x]}[name]


@compiled
@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(OPERATORS),
    shape=st.tuples(st.sampled_from([0, 1, 3]), st.sampled_from([1, 3, 16, 37]), *[st.sampled_from([1, 2, 5, 8])] * 2),
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from(list(TOLERANCE)),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    beta=st.sampled_from([0.5, 60.0]),
    seed=st.integers(0, 10**6),
)
def test_every_kernel_is_its_twin_to_rounding(name, shape, layout, dtype, scale, beta, seed):
    given_ = arguments(name, shape, seed, dtype, layout, scale)
    found = getattr(ops, name)(*given_, beta)
    exact = getattr(reference, name)(*(one.double() for one in given_), beta)
    assert found.dtype == dtype
    assert found.shape == exact.shape
    # A tangent is a difference of what it is made of, and the kernels count less than 1e-26 as 0.
    made_of = {OPERATORS[0]: exact, OPERATORS[1]: given_[-1], OPERATORS[2]: given_[0]}[name]
    size = max(1e-19, made_of.abs().max().item()) if made_of.numel() else 1.0
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=TOLERANCE[dtype] * size)


@devices
@pytest.mark.parametrize("module", [ops, reference])
def test_the_tail_has_these_values(module, device):
    x = torch.tensor([[[[0.0, 1], [-1, 100]]]], device=device)
    cell = torch.tensor([0.0, 1.0, -1.0, 100.0], dtype=torch.float64)
    for beta in (1.0, 60.0):
        expected = (torch.log1p(torch.exp(-beta * cell.abs())) / beta + cell.clamp(min=0)).mean().item()
        assert module.softplus_pool(x, beta).item() == pytest.approx(expected, rel=1e-6)
    slopes = module.softplus_pool_backward(torch.full((1, 1, 1, 1), 4.0, device=device), x, 1.0)
    assert slopes.flatten().tolist() == pytest.approx([0.5, 0.7310586, 0.2689414, 1.0], rel=1e-6)


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_goes_through_as_in_the_twin(special):
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 0] = special
    for found, other in (
        (ops.softplus_pool(x, 60.0), reference.softplus_pool(x, 60.0)),
        (
            ops.softplus_pool_tangent(x, torch.ones_like(x), 60.0),
            reference.softplus_pool_tangent(x, torch.ones_like(x), 60.0),
        ),
    ):
        torch.testing.assert_close(found, other, equal_nan=True)


@devices
@pytest.mark.parametrize("name", OPERATORS)
def test_derivatives_are_right_to_second_order_in_both_modes_and_under_vmap(name, device):
    given_ = [one.requires_grad_() for one in arguments(name, (2, 3, 5, 4), device=device)]

    def run(*tensors):
        return getattr(ops, name)(*tensors, 2.0)

    assert gradcheck(run, given_, check_forward_ad=True)
    assert gradgradcheck(run, given_)
    plain = [one.detach() for one in given_]
    directions = [normal(*one.shape, seed=5).to(device) for one in plain]
    theirs = jvp(lambda *tensors: getattr(reference, name)(*tensors, 2.0), tuple(plain), tuple(directions))
    for mine, other in zip(jvp(run, tuple(plain), tuple(directions)), theirs, strict=True):
        torch.testing.assert_close(mine, other)
    stacked = [torch.stack([one, 2 * one]) for one in plain]
    torch.testing.assert_close(vmap(run)(*stacked), torch.stack([run(*plain), run(*(2 * one for one in plain))]))


@compiled
@pytest.mark.parametrize("layout", ["planes", "channels-last"])
def test_schemas_fake_kernels_and_derivatives_agree(layout):
    place = torch.channels_last
    for name in OPERATORS:
        given_ = [one.contiguous(memory_format=place) for one in arguments(name, (2, 3, 5, 4), layout=layout)]
        torch.library.opcheck(getattr(torch.ops.ddlnl, name).default, (*given_, 2.0))


def test_a_result_has_the_layout_that_convolutions_are_fastest_in():
    out = ops.softplus_pool(normal(2, 8, 4, 4, seed=0), 1.0)
    assert out.is_contiguous(memory_format=torch.channels_last) == (ops.backend().name != "reference")


@compiled
def test_a_kernel_refuses_what_it_cannot_read():
    x = normal(2, 3, 4, 4, seed=0)
    with pytest.raises(RuntimeError, match="channels-last"):
        torch.ops.ddlnl.softplus_pool(x, 1.0)
