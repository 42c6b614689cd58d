"""The compiled augmentation against its twin, its derivatives, and what it refuses."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddlnl import _core, augment, ops
from ddlnl.errors import InputError
from ddlnl.generators import generator
from ddlnl.ops.reference import CODES, COLUMNS

compiled = pytest.mark.skipif(not _core.active(torch.zeros(1)), reason="the compiled core is not built")
devices = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))],
)
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11, torch.bfloat16: 0.08}
ALL_SIX = augment.program(*augment.OPERATIONS)


def random_table(count: int, size: tuple[int, int], source: torch.Generator) -> Tensor:
    """Parameters far beyond those that are drawn in practice: whole-image shifts, boxes at every edge, any scale."""
    height, width = size

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=source)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (count,), generator=source).float()

    def either(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(uniform(0, 1) < 0.7, a, b)

    angle = either(uniform(-0.27, 0.27), uniform(-math.pi, math.pi))
    extremes = torch.tensor([0.0, -1.0, 1.0, 100.0, 1e-3])
    return augment.parameters(
        count,
        flip=whole(0, 1),
        offset=uniform(-0.5, 0.5),
        saturation=uniform(0, 2),
        contrast=uniform(0.5, 1.5),
        row_shift=either(whole(-height - 1, height + 1), uniform(-2, 2)),
        column_shift=either(whole(-width - 1, width + 1), torch.full((count,), 1e30)),
        scale_row=either(uniform(0.8, 1.25), extremes[whole(0, 4).long()]),
        scale_column=either(uniform(0.8, 1.25), extremes[whole(0, 4).long()]),
        cosine=angle.cos(),
        sine=angle.sin(),
        cut_row=either(whole(-height, 2 * height), uniform(0, height)),
        cut_column=either(whole(-width, 2 * width), torch.full((count,), float("-inf"))),
    )


def random_case(seed: int, dtype: torch.dtype, device: str):
    """Small images, a table, programs in any order and of any length, and sometimes an index with repetitions."""
    source = generator(seed, "case")

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=source))

    size = (integer(1, 9), integer(1, 20))
    count = integer(0, 3) * 2
    images = torch.randn(count, integer(1, 4), *size, generator=source, dtype=torch.float64).to(dtype)
    index = None
    if count and integer(0, 2) == 0:
        index = torch.randint(count, (integer(0, 3) * 2,), generator=source)
        count = len(index)
    divisors = [rows for rows in (1, 2, count) if rows and count % rows == 0]
    table = random_table(divisors[integer(0, len(divisors) - 1)], size, source)
    rows, stages = divisors[integer(0, len(divisors) - 1)], integer(0, 7)
    codes = torch.randint(0, 7, (rows, stages), generator=source, dtype=torch.int32)
    codes = codes[0] if rows == 1 and integer(0, 1) else codes
    return images.to(device), table.to(device), codes.to(device), None if index is None else index.to(device)


def transposed(gradient: Tensor, table: Tensor, codes: Tensor, index: Tensor | None, count: int) -> Tensor:
    """The raw adjoint operator on a table of any dtype."""
    table = table.to(torch.promote_types(gradient.dtype, torch.float32))
    return torch.ops.ddlnl.augment_adjoint(gradient, table, codes, index, count)


@compiled
@devices
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_kernels_agree_with_the_twin_and_each_other_on_random_programs(device, seed, dtype):
    """Forty cases per example: values, gradients, and that the two operators are transposes, <A x, g> = <x, A' g>."""
    for case in range(40 if device == "cpu" else 8):  # a GPU starts slowly on every operation of the twin
        images, table, codes, index = random_case(seed + case, dtype, device)
        result = ops.augment(images, table, codes, index)
        leaf = images.clone().requires_grad_()
        expected = ops.reference.augment(leaf, table, codes, index)
        close = partial(torch.testing.assert_close, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        assert result.dtype == dtype
        close(result, expected.detach())
        gradient = torch.randn(result.shape, generator=generator(seed, "g"), dtype=torch.float64).to(device, dtype)
        (pulled,) = torch.autograd.grad(expected, leaf, gradient)
        back = transposed(gradient, table, codes, index, len(images))
        close(back, pulled)
        wide = table.to(torch.promote_types(dtype, torch.float32))
        linear = torch.ops.ddlnl.augment(images, wide, codes, index, True)
        left, right = (linear.double() * gradient).sum(), (images.double() * back).sum()
        scale = linear.double().norm() * gradient.double().norm() + images.double().norm() * back.double().norm()
        torch.testing.assert_close(left, right, atol=float(scale) * TOLERANCE[dtype] / 10 + 1e-12, rtol=0)


@compiled
@devices
@pytest.mark.parametrize("name", [*CODES, "nothing"])
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (17, 33), (1, 1), (3, 70)])
def test_every_operation_alone_agrees_with_the_twin(device, name, size):
    codes = (augment.program(name) if name in CODES else torch.tensor([0], dtype=torch.int32)).to(device)
    table = random_table(24, size, generator(5, name)).to(device)
    images = torch.randn(24, 3, *size, generator=generator(6, name)).to(device).requires_grad_()
    results = [apply(images, table, codes) for apply in (ops.augment, ops.reference.augment)]
    torch.testing.assert_close(*results, atol=2e-4, rtol=2e-4)
    weights = torch.randn(images.shape, generator=generator(7, name)).to(device)
    gradients = [torch.autograd.grad(result, images, weights)[0] for result in results]
    torch.testing.assert_close(*gradients, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("apply", [ops.augment, ops.reference.augment])
def test_nan_in_an_image_stays_where_the_operations_take_it(apply):
    images = torch.zeros(2, 1, 8, 8)
    images[0, 0, 2, 3] = float("nan")
    moved = apply(images, augment.parameters(row_shift=1, column_shift=-2), augment.program("crop"))
    assert moved.isnan().nonzero().tolist() == [[0, 0, 1, 5]]
    assert not apply(images, augment.parameters(row_shift=3), augment.program("crop")).isnan().any()
    assert not apply(images, augment.parameters(cut_row=2, cut_column=3), augment.program("cutout")).isnan().any()
    coloured = apply(images, augment.parameters(contrast=0.5), augment.program("color"))
    assert coloured[0].isnan().all()
    assert not coloured[1].isnan().any()
    for operation in ("scale", "rotate"):
        sampled = apply(
            images, augment.parameters(scale_row=0.9, scale_column=0.9, sine=0.1), augment.program(operation)
        )
        assert sampled[0, 0, 2, 3].isnan()
        assert sampled.isnan().sum() <= 9


@compiled
def test_results_do_not_depend_on_the_number_of_threads_or_on_strides():
    source = generator(0, "threads")
    images = torch.randn(64, 3, 16, 16, generator=source)
    table, index = random_table(128, (16, 16), source), torch.randint(64, (128,), generator=source)
    expected = ops.augment(images, table, ALL_SIX, index)
    back = transposed(expected, table, ALL_SIX, index, 64)
    torch.set_num_threads(3)
    try:
        assert torch.equal(ops.augment(images, table, ALL_SIX, index), expected)
        assert torch.equal(transposed(expected, table, ALL_SIX, index, 64), back)
    finally:
        torch.set_num_threads(1)
    strided = images.to(memory_format=torch.channels_last)
    every_second = torch.stack([table, table], 1).flatten(0, 1)[::2]
    assert torch.equal(ops.augment(strided, every_second, ALL_SIX, torch.stack([index, index], 1)[:, 0]), expected)


@compiled
def test_rows_of_a_stack_of_models_serve_their_models():
    """M tables and M programs over a stack of M batches are M calls."""
    source = generator(0, "stack")
    stack = torch.randn(3, 4, 3, 8, 8, generator=source)
    tables = random_table(3, (8, 8), source)
    codes = torch.stack([augment.program(*names.split("_")) for names in ("scale_color", "crop_cutout", "flip_rotate")])
    result = ops.augment(stack.flatten(0, 1), tables, codes)
    for model in range(3):
        alone = ops.augment(stack[model], tables[model : model + 1], codes[model])
        assert torch.equal(result[4 * model : 4 * model + 4], alone)


@compiled
@devices
def test_an_index_reads_and_its_adjoint_adds_up(device):
    images = torch.randn(5, 2, 6, 6, generator=generator(1, "x")).to(device)
    index, codes = torch.tensor([3, 3, 0, 3], device=device), ALL_SIX.to(device)
    table = random_table(4, (6, 6), generator(1, "table")).to(device)
    result = ops.augment(images, table, codes, index)
    assert torch.equal(result, ops.augment(images[index], table, codes))
    back = transposed(result, table, codes, index, 5)
    each = transposed(result, table, codes, None, 4)
    torch.testing.assert_close(back, torch.zeros_like(images).index_add(0, index, each))
    assert not back[[1, 2, 4]].any()


@devices
@pytest.mark.parametrize("apply", [ops.augment, ops.reference.augment])
def test_derivatives_of_every_order_are_right(device, apply):
    source = generator(3, "derivatives")
    images = torch.randn(2, 2, 4, 5, dtype=torch.float64, generator=source).to(device).requires_grad_()
    table = augment.draw("color_crop_flip_scale_rotate", 3, (4, 5), source, "all").table.to(device)
    index = torch.tensor([1, 0, 1], device=device)
    codes = augment.program("flip", "rotate", "color", "crop", "scale").to(device)

    def cube(x: Tensor) -> Tensor:
        return apply(x, table, codes, index).pow(3)

    assert torch.autograd.gradcheck(cube, images, check_forward_ad=True, check_batched_grad=True)
    # check_fwd_over_rev differentiates the backward pass in forward mode.
    assert torch.autograd.gradgradcheck(cube, images, check_fwd_over_rev=True, check_rev_over_rev=True)

    def scalar(x: Tensor) -> Tensor:
        return cube(x).sum()

    x, direction = images.detach(), torch.randn(images.shape, dtype=torch.float64, generator=source).to(device)
    _, tangent = torch.func.jvp(lambda x: apply(x, table, codes, index), (x,), (direction,))
    linear = apply(direction, table, codes, index) - apply(torch.zeros_like(x), table, codes, index)
    torch.testing.assert_close(tangent, linear)
    _, forward_over_reverse = torch.func.jvp(torch.func.grad(scalar), (x,), (direction,))
    _, product = torch.autograd.functional.hvp(scalar, x, direction)
    torch.testing.assert_close(forward_over_reverse, product)


@compiled
def test_parameters_get_no_gradient():
    table = augment.parameters(offset=0.5).requires_grad_()
    images = torch.zeros(1, 1, 2, 2, requires_grad=True)
    ops.augment(images, table, augment.program("color")).sum().backward()
    assert table.grad is None
    assert torch.equal(images.grad, torch.ones(1, 1, 2, 2))
    result, tangent = torch.func.jvp(
        lambda t: ops.augment(images.detach(), t, ALL_SIX), (table.detach(),), (table * 0,)
    )
    assert result.shape == tangent.shape
    assert not tangent.any()


def _arguments(source: torch.Generator, batch: int, per_batch: int) -> dict[str, Tensor]:
    """Batched arguments of `augment`, each with a leading dimension of `batch`."""
    return {
        "images": torch.randn(batch, per_batch, 2, 5, 4, generator=source, dtype=torch.float64),
        "table": torch.stack([random_table(2, (5, 4), source) for _ in range(batch)]).double(),
        "codes": torch.randint(0, 7, (batch, 2, 4), generator=source, dtype=torch.int32),
        "index": torch.randint(per_batch, (batch, 4), generator=source),
    }


@compiled
@pytest.mark.parametrize("batched", range(1, 16))
@pytest.mark.parametrize("indexed", [True, False])
def test_vmap_over_any_arguments_is_a_loop(batched, indexed):
    """Values and gradients, with each of images, table, codes and index batched or shared."""
    arguments = _arguments(generator(batched, "vmap"), batch=3, per_batch=4)
    if not indexed:
        arguments["index"] = None
    over = [name for bit, name in enumerate(arguments) if batched >> bit & 1 and arguments[name] is not None]
    if not over:
        pytest.skip("without an index there is nothing to batch")
    values = [tensor if name in over or tensor is None else tensor[0] for name, tensor in arguments.items()]
    dims = tuple(0 if name in over else None for name in arguments)

    def both(images, table, codes, index):
        value, pull = torch.func.vjp(lambda x: ops.augment(x, table, codes, index).square(), images)
        return value, pull(torch.ones_like(value))[0]

    result, gradient = torch.func.vmap(both, in_dims=dims)(*values)
    for row in range(3):
        one = [value if dim is None else value[row] for value, dim in zip(values, dims, strict=True)]
        expected, pulled = both(*one)
        torch.testing.assert_close(result[row], expected)
        torch.testing.assert_close(gradient[row], pulled)


@compiled
@pytest.mark.parametrize("index", [[[2], [0], [0]], [[0], [-1], [0]]])
@pytest.mark.parametrize("shared", [False, True])
def test_vmap_refuses_an_index_outside_its_own_batch_where_it_is_inside_another_s(index, shared):
    images, index = torch.zeros(3, 2, 1, 1, 1), torch.tensor(index)

    def apply(images, index):
        return ops.augment(images, augment.parameters(), ALL_SIX, index)

    batches = torch.func.vmap(apply, in_dims=(None if shared else 0, 0))
    with pytest.raises(RuntimeError, match=r"The index -?\d is outside the \d images"):
        batches(images[0] if shared else images, index)


@compiled
def test_vmap_takes_any_dimension_and_one_program_of_rank_one():
    images = torch.randn(4, 1, 5, 6, 3, dtype=torch.float64, generator=generator(0, "x"))  # the batch of 3 is last
    programs = torch.stack([augment.program("flip"), augment.program("color"), augment.program("crop")], 1)
    table = random_table(1, (5, 6), generator(0, "table"))
    result = torch.func.vmap(ops.augment, in_dims=(4, None, 1), out_dims=4)(images, table, programs)
    for row in range(3):
        torch.testing.assert_close(result[..., row], ops.augment(images[..., row], table, programs[:, row]))


@compiled
@pytest.mark.parametrize("indexed", [True, False])
def test_the_raw_operators_follow_the_rules_of_torch(indexed):
    images = torch.randn(4, 2, 5, 6)
    table = random_table(2, (5, 6), generator(0, "table"))
    index = torch.tensor([0, 3, 3, 1]) if indexed else None
    torch.library.opcheck(torch.ops.ddlnl.augment, (images, table, ALL_SIX, index, False))
    torch.library.opcheck(torch.ops.ddlnl.augment_adjoint, (images, table, ALL_SIX, index, 4))


@pytest.mark.parametrize("apply", [ops.augment, ops.reference.augment])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": torch.zeros(3, 8, 8)}, r"Images are a floating \(N, C, H, W\) tensor, not float32 \(3, 8, 8\)"),
        ({"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, r"not uint8 \(4, 3, 8, 8\)"),
        ({"table": torch.zeros(1, len(COLUMNS) - 1)}, r"table is a floating \(Q, 12\) tensor, not float32 \(1, 11\)"),
        ({"table": torch.zeros(1, 12, dtype=torch.int64)}, "table is a floating"),
        ({"table": torch.zeros(3, 12)}, "The 3 rows of the table do not divide the 4 images"),
        ({"table": torch.zeros(0, 12)}, "The 0 rows of the table do not divide the 4 images"),
        ({"table": torch.zeros(1, 12, device="meta")}, "images are on cpu, but the table is on meta"),
        ({"codes": torch.tensor([1])}, r"codes are an int32 \(S,\) or \(R, S\) tensor, not int64 \(1,\)"),
        ({"codes": torch.tensor(1, dtype=torch.int32)}, "codes are an int32"),
        ({"codes": torch.zeros(8, 2, dtype=torch.int32)}, "The 8 rows of the codes do not divide the 4 images"),
        ({"index": torch.zeros(4)}, r"index is an int64 \(N,\) tensor, not float32"),
        ({"index": torch.zeros(2, 2, dtype=torch.int64)}, "index is an int64"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(apply, change, sentence):
    arguments = {"images": torch.zeros(4, 3, 8, 8), "table": augment.parameters(), "codes": augment.program("flip")}
    apply(**arguments)
    with pytest.raises(InputError, match=sentence):
        apply(**(arguments | change))


@pytest.mark.parametrize("code", [-1, 7])
def test_an_unknown_code_is_refused(code):
    images, codes = torch.zeros(2, 1, 4, 4), torch.tensor([1, code], dtype=torch.int32)
    for apply in (ops.augment, ops.reference.augment):
        with pytest.raises(
            (InputError, RuntimeError), match=f"The operation code {code} is unknown; codes run from 0 to 6"
        ):
            apply(images, augment.parameters(), codes)


@compiled
@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_outside_the_images_is_refused(index):
    index = torch.tensor([0, index])
    with pytest.raises(RuntimeError, match="is outside the 2 images"):
        ops.augment(torch.zeros(2, 1, 4, 4), augment.parameters(), ALL_SIX, index)
    with pytest.raises(RuntimeError, match="is outside the 2 images"):
        transposed(torch.zeros(2, 1, 4, 4), augment.parameters(), ALL_SIX, index, 2)


@compiled
def test_kernels_refuse_what_the_wrapper_would_have_converted():
    images, table = torch.zeros(4, 1, 4, 4), augment.parameters()
    bad = [
        ((images.mT[:, :, ::2], table, ALL_SIX, None, False), "contiguous"),
        ((images, table.double(), ALL_SIX, None, False), "float64 for float64 images, else float32"),
        ((images.half(), table, ALL_SIX, None, False), "takes float32, float64 or bfloat16"),
        ((images, augment.parameters(3), ALL_SIX, None, False), "3 rows of the table do not divide the 4 images"),
        ((images, table, ALL_SIX.long(), None, False), "codes are a contiguous int32"),
    ]
    for arguments, sentence in bad:
        with pytest.raises(RuntimeError, match=sentence):
            torch.ops.ddlnl.augment(*arguments)
    with pytest.raises(RuntimeError, match="makes 4 images, not 5"):
        torch.ops.ddlnl.augment_adjoint(images, table, ALL_SIX, None, 5)
    with pytest.raises(RuntimeError, match="2 entries for 4 gradients"):
        torch.ops.ddlnl.augment_adjoint(images, table, ALL_SIX, torch.zeros(2, dtype=torch.int64), 5)


def test_half_precision_runs_on_the_twin():
    images = torch.randn(2, 3, 8, 8, generator=generator(0, "x")).half()
    assert ops.augment(images, augment.parameters(flip=1), augment.program("flip")).equal(images.flip(3))
