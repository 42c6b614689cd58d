"""The fused block tail is its twin: value, tangent and every derivative, on every shape and memory layout."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vjp, vmap

from ddlnl import _core, ops
from ddlnl.errors import InputError
from ddlnl.networks import ConvNet
from ddlnl.ops import reference

compiled = pytest.mark.skipif(not _core.active(torch.zeros(())), reason="there is no compiled core")
devices = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))],
)
LAYOUTS = {
    "planes": lambda x: x.contiguous(),
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
OPTIONS = list(itertools.product([True, False], [0, 1, 2]))  # norm or not; without affine, one row, two rows


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def draws(shape, groups, layout, seed, dtype=torch.float64, scale=1.0, device="cpu"):
    """x, dx, weight, dweight, bias, dbias; groups 0: no affine, 1: (C,), more: (G, C)."""
    images = [LAYOUTS[layout](scale * normal(*shape, seed=seed + i, dtype=dtype)).to(device) for i in range(2)]
    size = (shape[1],) if groups == 1 else (groups, shape[1])
    rows = [normal(*size, seed=seed + 2 + i, dtype=dtype).to(device) if groups else None for i in range(4)]
    return [*images, *rows]


def values(module, tensors, norm):
    x, _, weight, _, bias, _ = tensors
    return (module.norm_relu_pool(x, weight, bias, 1e-5, norm),)


def tangents(module, tensors, norm):
    return module.norm_relu_pool_tangent(*tensors, 1e-5, norm)


def gradients(outputs, tensors, seed):
    cotangents = [normal(*out.shape, seed=seed + i, dtype=out.dtype).to(out.device) for i, out in enumerate(outputs)]
    given_ = [one for one in tensors if one is not None]
    return torch.autograd.grad(outputs, given_, cotangents, allow_unused=True)


def away_from_the_kink(tensors, norm):
    """Whether rounding cannot decide on which side of ReLU's kink an element lies."""
    x, _, weight, _, bias, _ = (None if one is None else one.double() for one in tensors)
    y = reference._block._affine(reference._block._normalised(x, 1e-5)[0] if norm else x, weight, bias)
    return not y.numel() or y.abs().min() > 1e-4


@compiled
@settings(deadline=None, max_examples=140)
@given(
    operator=st.sampled_from([values, tangents]),
    shape=st.tuples(
        st.sampled_from([0, 2, 4]),
        st.sampled_from([1, 3, 16, 17]),
        st.sampled_from([1, 2, 3, 5, 8]),
        st.sampled_from([1, 2, 7, 8, 16, 32]),
    ),
    layout=st.sampled_from(list(LAYOUTS)),
    dtype=st.sampled_from(list(TOLERANCE)),
    scale=st.sampled_from([1.0, 1e-2, 100.0]),
    seed=st.integers(0, 10**6),
)
def test_value_tangent_and_their_gradients_are_those_of_the_twin(operator, shape, layout, dtype, scale, seed):
    for case, ((norm, groups), repeat) in enumerate(itertools.product(OPTIONS, range(5))):  # 30 x 140 cases
        tensors = draws(shape, groups, layout, seed + 97 * case, dtype, scale)
        tensors = [None if one is None else one.requires_grad_() for one in tensors]
        found, twin = operator(ops, tensors, norm), operator(reference, tensors, norm)
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * max(1, scale)}
        checked = list(zip(found[:1], twin[:1], strict=True))
        if away_from_the_kink(tensors, norm):
            checked = list(zip(found, twin, strict=True))
            # Gradients of tiny planes are small differences of large terms, more than float32 can tell apart.
            if repeat == 0 and twin[0].numel() and (dtype == torch.float64 or shape[2] * shape[3] > 15):
                mine, theirs = gradients(found, tensors, seed), gradients(twin, tensors, seed)
                for one, other in zip(mine, theirs, strict=True):
                    assert (one is None) == (other is None)
                    if other is not None and other.numel():
                        size = other.abs().max().item() + 1e-6
                        torch.testing.assert_close(one / size, other / size, rtol=0, atol=100 * TOLERANCE[dtype])
        for one, other in checked:
            assert one.dtype == other.dtype
            size = max(1, other.detach().abs().max().item()) if other.numel() else 1
            torch.testing.assert_close(one / size, other / size, **close)


@devices
def test_the_block_has_these_values(device):
    x = torch.tensor([[[[0.0, 1], [2, 3]]]], device=device)
    dx = torch.tensor([[[[1.0, 0], [0, 0]]]], device=device)
    value, tangent = ops.norm_relu_pool_tangent(x, dx, eps=0.0)
    assert value.item() == pytest.approx(0.2 * 5**0.5, rel=1e-6)
    assert tangent.item() == pytest.approx(0.01 * 5**0.5, rel=1e-5)
    assert ops.norm_relu_pool(x, eps=0.0).item() == pytest.approx(value.item(), rel=1e-6)
    assert ops.norm_relu_pool(x, norm=False).item() == 1.5
    weight, bias = torch.tensor([2.0], device=device), torch.tensor([-7.0], device=device)
    assert ops.norm_relu_pool(x + 3, weight, bias, norm=False).item() == pytest.approx((1 + 3 + 5) / 4)


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("norm", "groups"), OPTIONS)
def test_the_derivatives_are_right_to_second_order_in_reverse_and_forward_mode(norm, groups, layout):
    tensors = draws((2, 2, 4, 3), groups, layout, seed=3)
    given_ = [one.clone().requires_grad_() for one in tensors if one is not None]

    def value(x, weight=None, bias=None):
        return ops.norm_relu_pool(x, weight, bias, 1e-5, norm)

    def tangent(x, dx, *rows):
        return ops.norm_relu_pool_tangent(x, dx, *rows, norm=norm)

    primal = given_[::2]
    assert gradcheck(value, primal, check_forward_ad=True)
    assert gradgradcheck(value, primal, check_fwd_over_rev=True)
    assert gradcheck(tangent, given_, check_forward_ad=True)
    assert gradgradcheck(tangent, given_)


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
def test_functional_transforms_agree_with_the_twin_in_any_nesting(layout):
    x, dx, weight, dweight, bias, _ = draws((4, 3, 4, 6), 1, layout, seed=11)
    xs, dxs = torch.stack([x, dx, x - dx]), torch.stack([dx, x, x + dx])
    weights, dweights = torch.stack([weight, dweight, weight + 1]), torch.stack([dweight, weight, weight])

    def results(module):
        def value(x, weight):
            return module.norm_relu_pool(x, weight, bias)

        def loss(x, weight):
            return value(x, weight).square().sum()

        along = vmap(lambda x, w, d, dw: jvp(value, (x, w), (d, dw)))(xs, weights, dxs, dweights)
        pulled = vmap(lambda x, w, d: vjp(value, x, w)[1](value(d, w)))(xs, weights, dxs)
        forward_over_reverse = vmap(lambda x, w, d: jvp(grad(lambda x: loss(x, w)), (x,), (d,))[1])(xs, weights, dxs)
        reverse_over_forward = vmap(lambda x, w, d: grad(lambda x: jvp(lambda x: loss(x, w), (x,), (d,))[1])(x))(
            xs, weights, dxs
        )
        mixed = vmap(value, in_dims=(2, None))(xs.movedim(0, 2), weight), vmap(value, in_dims=(None, 0))(x, weights)
        twice = vmap(lambda d: module.norm_relu_pool_tangent(x, d, weight, dweight))(dxs)
        return [*along, *pulled, forward_over_reverse, reverse_over_forward, *mixed, *twice]

    for found, twin in zip(results(ops), results(reference), strict=True):
        torch.testing.assert_close(found, twin)


@compiled
@pytest.mark.parametrize("layout", ["planes", "channels-last"])
def test_the_raw_operators_follow_the_rules_of_torch(layout):
    x, dx, weight, dweight, bias, dbias = draws((4, 3, 5, 6), 2, layout, seed=5)
    raw = torch.ops.ddlnl
    out, statistics = raw.norm_relu_pool(x, weight, bias, 1e-5, True)
    torch.library.opcheck(raw.norm_relu_pool, (x, weight, bias, 1e-5, True))
    torch.library.opcheck(raw.norm_relu_pool_backward, (out, x, weight, bias, statistics, True))
    six = (x, dx, weight, dweight, bias, dbias)
    statistics = raw.norm_relu_pool_tangent(*six, 1e-5, True)[2]
    torch.library.opcheck(raw.norm_relu_pool_tangent, (*six, 1e-5, True))
    torch.library.opcheck(raw.norm_relu_pool_tangent_backward, (out, out, *six, statistics, True))


@devices
@pytest.mark.parametrize("module", [ops, reference])
@pytest.mark.parametrize("layout", ["planes", "channels-last"])
def test_bfloat16_is_rounded_only_on_the_way_in_and_out(layout, module, device):
    tensors = draws((4, 16, 8, 8), 1, layout, seed=9, dtype=torch.bfloat16, device=device)
    exact = [one.double() for one in tensors]
    for operator in (values, tangents):
        for one, other in zip(operator(module, tensors, True), operator(reference, exact, True), strict=True):
            assert one.dtype == torch.bfloat16
            torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-6)


def test_float16_does_not_overflow_inside():
    x = 300 * normal(2, 3, 8, 8, seed=1, dtype=torch.float16)
    torch.testing.assert_close(ops.norm_relu_pool(x), ops.norm_relu_pool(x.float()).half(), rtol=2**-10, atol=1e-4)


@compiled
@pytest.mark.parametrize("layout", ["planes", "channels-last"])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf")])
def test_without_the_norm_an_infinity_stays_where_it_is(layout, bad):
    x, dx, *_ = draws((2, 3, 4, 4), 0, layout, seed=4)
    x[1, 2, 0, 0] = bad
    tensors = [x.requires_grad_(), dx.requires_grad_(), None, None, None, None]
    found, twin = tangents(ops, tensors, False), tangents(reference, tensors, False)
    pairs = zip([*found, *gradients(found, tensors, 3)], [*twin, *gradients(twin, tensors, 3)], strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other)
    one, other = (gradients(values(module, tensors, False), tensors[:1], 3)[0] for module in (ops, reference))
    torch.testing.assert_close(one, other)


def test_images_without_channels_or_rows_give_empty_results():
    for module in (ops, reference):
        assert module.norm_relu_pool(torch.zeros(2, 0, 4, 4), torch.zeros(0), torch.zeros(0)).shape == (2, 0, 2, 2)
        assert module.norm_relu_pool(torch.zeros(2, 0, 4, 4)).shape == (2, 0, 2, 2)
        assert module.norm_relu_pool(torch.zeros(0, 3, 5, 4)).shape == (0, 3, 2, 2)
        assert module.norm_relu_pool(torch.zeros(2, 3, 1, 4)).shape == (2, 3, 0, 2)


def test_a_convnet_runs_under_autocast():
    images = normal(2, 3, 16, 16, seed=0, dtype=torch.float32)
    network = ConvNet(5, depth=2, width=6, size=16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    torch.testing.assert_close(logits.float(), network(images), rtol=0, atol=0.05)


@devices
@pytest.mark.parametrize("layout", ["planes", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_nan_or_an_infinity_is_not_hidden(layout, dtype, device):
    for bad in (float("nan"), float("inf")):
        x = LAYOUTS[layout](normal(2, 3, 4, 4, seed=1, dtype=dtype)).to(device)
        x[1, 2, 0, 0] = bad
        out = ops.norm_relu_pool(x)
        assert out[1, 2].isnan().any()
        assert out[0].isfinite().all()
        assert out[1, :2].isfinite().all()
    gradient = torch.full((2, 3, 2, 2), float("nan"), dtype=dtype, device=device)
    x = LAYOUTS[layout](normal(2, 3, 4, 4, seed=1, dtype=dtype)).to(device).requires_grad_()
    assert torch.autograd.grad(ops.norm_relu_pool(x), x, gradient)[0].isnan().any()


@compiled
@pytest.mark.parametrize("layout", ["planes", "channels-last"])
def test_the_result_does_not_depend_on_the_number_of_threads(layout):
    tensors = [one.requires_grad_() for one in draws((7, 5, 32, 32), 1, layout, seed=2, dtype=torch.float32)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = tangents(ops, tensors, True)
            results.append([*out, *gradients(out, tensors, 4)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("layout", ["planes", "channels-last"])
def test_the_output_has_the_memory_layout_of_the_input(layout):
    x = LAYOUTS[layout](normal(2, 3, 8, 8, seed=0))
    out = ops.norm_relu_pool(x)
    assert LAYOUTS[layout](out).stride() == out.stride()


@devices
def test_a_stack_of_networks_in_one_call_equals_each_alone(device):
    """A single bias row then serves all of them."""
    x, _, weight, _, bias, _ = draws((6, 3, 8, 8), 3, "planes", seed=8, device=device)
    alone = [ops.norm_relu_pool(x[2 * m : 2 * m + 2], weight[m], bias[m]) for m in range(3)]
    torch.testing.assert_close(ops.norm_relu_pool(x, weight, bias), torch.cat(alone))
    alone = [ops.norm_relu_pool(x[2 * m : 2 * m + 2], weight[m], bias[0]) for m in range(3)]
    torch.testing.assert_close(ops.norm_relu_pool(x, weight, bias[0]), torch.cat(alone))


def test_a_convnet_with_the_block_equals_the_published_layers_in_value_and_gradient():
    width, images = 6, normal(4, 3, 16, 16, seed=0).requires_grad_()
    network = ConvNet(5, depth=2, width=width, size=16).double()
    layers = []
    for block in range(2):
        layers += [torch.nn.Conv2d(3 if block == 0 else width, width, 3, padding=1), torch.nn.GroupNorm(width, width)]
        layers += [torch.nn.ReLU(), torch.nn.AvgPool2d(2)]
    plain = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(width * 16, 5)).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), network.state_dict().values(), strict=True)))
    torch.testing.assert_close(network(images), plain(images))
    for one, other in zip(
        torch.autograd.grad(network(images).square().sum(), [images, *network.parameters()]),
        torch.autograd.grad(plain(images).square().sum(), [images, *plain.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


GOOD = torch.zeros(4, 3, 8, 8)
BAD = {
    "rank": lambda: ops.norm_relu_pool(torch.zeros(3, 8, 8)),
    "whole numbers": lambda: ops.norm_relu_pool(torch.zeros(4, 3, 8, 8, dtype=torch.int64)),
    "weight of another size": lambda: ops.norm_relu_pool(GOOD, torch.ones(4)),
    "weight without rows": lambda: ops.norm_relu_pool(GOOD, torch.ones(0, 3)),
    "weight that is a number": lambda: ops.norm_relu_pool(GOOD, torch.ones(())),
    "rows that do not divide the images": lambda: ops.norm_relu_pool(GOOD, torch.ones(3, 3)),
    "another dtype": lambda: ops.norm_relu_pool(GOOD, torch.ones(3).double()),
    "a direction on another device": lambda: ops.norm_relu_pool_tangent(GOOD, GOOD.to("meta")),
    "another device": lambda: ops.norm_relu_pool(GOOD, torch.ones(3, device="meta")),
    "a direction of another shape": lambda: ops.norm_relu_pool_tangent(GOOD, torch.zeros(4, 3, 8, 7)),
    "different numbers of rows": lambda: ops.norm_relu_pool(GOOD, torch.ones(2, 3), torch.ones(4, 3)),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_with_a_sentence(case):
    with pytest.raises(InputError, match=r"norm_relu_pool|must be|where x has"):
        BAD[case]()


@compiled
def test_the_raw_operators_refuse_what_they_cannot_read():
    raw, row = torch.ops.ddlnl, torch.ones(1, 3)
    _, statistics = raw.norm_relu_pool(GOOD, row, None, 1e-5, True)
    for call in (
        lambda: raw.norm_relu_pool(GOOD[0], None, None, 1e-5, True),
        lambda: raw.norm_relu_pool(GOOD.transpose(2, 3)[:, :, :, :4], None, None, 1e-5, True),
        lambda: raw.norm_relu_pool(GOOD.half(), None, None, 1e-5, True),
        lambda: raw.norm_relu_pool(GOOD, torch.ones(3), None, 1e-5, True),
        lambda: raw.norm_relu_pool(GOOD, torch.ones(3, 3), None, 1e-5, True),
        lambda: raw.norm_relu_pool(GOOD, row, torch.ones(2, 3), 1e-5, True),
        lambda: raw.norm_relu_pool_backward(GOOD, GOOD, row, None, statistics, True),
        lambda: raw.norm_relu_pool_backward(GOOD[..., :4, :4], GOOD, row, None, statistics[:1], True),
        lambda: raw.norm_relu_pool_tangent(GOOD, GOOD[:2], None, None, None, None, 1e-5, True),
    ):
        with pytest.raises(RuntimeError, match="norm_relu_pool"):
            call()
