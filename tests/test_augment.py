from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddlnl import augment, ops
from ddlnl.errors import InputError
from ddlnl.generators import generator

# An 8x8 image with known results of every operation, computed independently of this code from the formulas.
WAVE = torch.sin(1.3 * torch.arange(3.0)[:, None, None] + 0.5 * torch.arange(8.0)[:, None] + 0.9 * torch.arange(8.0))[
    None
]
EVERYTHING = "color_crop_cutout_flip_scale_rotate"
ANGLE = math.radians(12)
COLOR = {"offset": 0.3, "saturation": 0.6, "contrast": 1.4}
CROP = {"row_shift": 1, "column_shift": -1}
CUTOUT = {"cut_row": 2, "cut_column": 7}
ROTATE = {"cosine": math.cos(ANGLE), "sine": math.sin(ANGLE)}
GOLDEN = {
    "flip": ({"flip": 1}, 0.476906, 95.437075, (0.016814, -0.772765, -0.977530, -0.442520), -0.993691, -0.182163),
    "color": (COLOR, 58.076906, 117.209225, (0.575098, 1.188662, 1.128953, 0.441157), 1.257051, -0.125073),
    "crop": (CROP, 0.032969, 73.495270, (0, 0.479426, 0.985450, 0.745705), 0.578439, 0),
    "cutout": (CUTOUT, -10.291845, 77.692257, (0, 0.783327, 0.973848, 0.427380), 0, -0.165605),
    "scale": (
        {"scale_column": 1.15, "scale_row": 0.85},
        0.429283,
        65.595236,
        (0.119557, 0.650288, 0.862031, 0.223488),
        0.874674,
        -0.191513,
    ),
    "rotate": (ROTATE, 0.610179, 69.600384, (0.219715, 0.519057, 0.426866, -0.209233), 0.894887, -0.256867),
    "color_crop_cutout": (COLOR | CROP | CUTOUT, 21.859537, 60.548043, (0, 0.980763, 1.249243, 0.798602), 0, 0),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_every_operation_gives_the_known_values(name):
    columns, total, squares, first_row, inner, corner = GOLDEN[name]
    result = ops.augment(WAVE, augment.parameters(**columns), augment.program(*name.split("_")))
    assert result.sum().item() == pytest.approx(total, abs=2e-5)
    assert result.square().sum().item() == pytest.approx(squares, abs=2e-4)
    assert result[0, 0, 0, :4].tolist() == pytest.approx(first_row, abs=1e-5)
    assert result[0, 1, 3, 5].item() == pytest.approx(inner, abs=1e-5)
    assert result[0, 2, 7, 7].item() == pytest.approx(corner, abs=1e-5)


@pytest.mark.parametrize("operation", ["scale", "rotate"])
def test_resampling_agrees_with_torch_grid_sample(operation):
    images = torch.randn(16, 3, 32, 32, dtype=torch.float64, generator=generator(0, "images"))
    drawn = augment.draw(operation, 16, (32, 32), generator(0, operation))
    scale_row, scale_column, cosine, sine = drawn.table[:, 6:10].double().T
    zero = torch.zeros_like(sine)
    first, second = (
        torch.stack([scale_column * cosine, -sine, zero], 1),
        torch.stack([sine, scale_row * cosine, zero], 1),
    )
    theta = torch.stack([first, second], 1)
    for corners in (False, True):
        grid = torch.nn.functional.affine_grid(theta, images.shape, align_corners=corners)
        expected = torch.nn.functional.grid_sample(images, grid, align_corners=corners)
        torch.testing.assert_close(drawn(images), expected, atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([(8, 8), (9, 7), (32, 32)]))
def test_the_linear_part_and_its_gradient_are_adjoint(seed, size):
    drawn = augment.draw(EVERYTHING, 4, size, generator(seed, "draw"))
    x, g = torch.randn(2, 4, 3, *size, dtype=torch.float64, generator=generator(seed, "x")).unbind()
    x.requires_grad_()
    linear = drawn(x) - drawn(torch.zeros_like(x))
    (adjoint,) = torch.autograd.grad(linear, x, g)
    assert (linear * g).sum().item() == pytest.approx((x * adjoint).sum().item(), abs=1e-9)


def test_the_operator_has_second_and_forward_derivatives():
    drawn = augment.draw("color_flip_rotate_cutout", 2, (5, 5), generator(3, "draw"))
    x = torch.randn(2, 1, 5, 5, dtype=torch.float64, generator=generator(3, "x"), requires_grad=True)

    def square(images):
        return drawn(images).square()

    assert torch.autograd.gradcheck(square, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(square, x)


@pytest.mark.parametrize("strategy", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_neutral_parameters_change_nothing(strategy):
    images = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(
        ops.augment(images, augment.parameters(3), augment.program(strategy)), images, atol=1e-6, rtol=0
    )


def test_one_row_serves_the_whole_batch_as_equal_rows_do():
    images = torch.rand(5, 3, 16, 16)
    drawn = augment.draw("color_crop_cutout_flip", 1, (16, 16), generator(1, "draw"))
    repeated = drawn.rows(torch.zeros(5, dtype=torch.long))
    assert torch.equal(drawn(images), repeated(images))


def test_single_mode_draws_every_operation_equally_often():
    source = generator(0, "single")
    drawn = torch.stack([augment.draw(EVERYTHING, 1, (8, 8), source, mode="single").codes for _ in range(1200)])
    assert drawn.shape == (1200, 1)
    counts = [int((drawn == augment.program(name)).sum()) for name in augment.OPERATIONS]
    assert min(counts) > 150  # 200 expected; six standard deviations are 77
    assert max(counts) < 250


def test_composed_mode_keeps_one_geometric_operation_in_the_published_order():
    source = generator(0, "composed")
    drawn = [augment.draw("rotate_scale_crop_color_flip_cutout", 2, (8, 8), source).codes for _ in range(60)]
    published = [augment.program("flip", "color", geometric, "cutout") for geometric in ("crop", "scale", "rotate")]
    assert {tuple(codes.tolist()) for codes in drawn} == {tuple(codes.tolist()) for codes in published}


def test_all_mode_carries_out_every_operation_in_the_order_of_the_lineage():
    drawn = augment.draw("rotate_flip_scale_cutout_crop_color", 5, (16, 16), generator(0, "all"), mode="all")
    assert torch.equal(drawn.codes, augment.program("color", "crop", "cutout", "flip", "scale", "rotate"))
    x = torch.randn(5, 3, 16, 16, generator=generator(0, "x"))
    one_by_one = x
    for name in augment.OPERATIONS:
        one_by_one = ops.augment(one_by_one, drawn.table, augment.program(name))
    torch.testing.assert_close(drawn(x), one_by_one)
    assert (drawn(x) - x).flatten(1).norm(dim=1).min() > 1


@pytest.mark.parametrize(
    ("seed", "mode", "codes", "row"),
    [
        (11, "composed", "flip_color_rotate_cutout", {"saturation": 1.681370, "cosine": 0.976002, "sine": -0.217760}),
        (11, "single", "rotate", {"cosine": 0.979015, "sine": -0.203790}),
        (12, "composed", "flip_color_crop_cutout", {"flip": 1, "row_shift": -3, "column_shift": -3, "cut_row": 6}),
        (13, "composed", "flip_color_scale_cutout", {"contrast": 0.951230, "scale_column": 0.999608, "cut_row": 2}),
        (13, "composed", "flip_color_scale_cutout", {"offset": -0.074647, "scale_row": 1.126314, "cut_column": 0}),
        (13, "single", "crop", {"row_shift": 1, "column_shift": -4}),
    ],
)
def test_a_seed_gives_the_parameters_it_gave_to_the_first_records(seed, mode, codes, row):
    drawn = augment.draw(EVERYTHING, 2, (32, 32), generator(seed, "draw"), mode)
    assert torch.equal(drawn.codes, augment.program(*codes.split("_")))
    for name, value in row.items():
        assert drawn.table[0, ops.reference.COLUMNS.index(name)].item() == pytest.approx(value, abs=1e-6)


def test_rows_pick_parameters_and_programs_per_image():
    x = torch.randn(3, 2, 8, 8, generator=generator(2, "x"))
    table = augment.parameters(2, offset=torch.tensor([0.1, 0.2]), flip=1)
    each = augment.Augmentation(table, torch.stack([augment.program("color"), augment.program("flip")]))
    picked = each.rows(torch.tensor([1, 0, 1]))(x)
    assert torch.equal(picked[0::2], x[0::2].flip(3))
    torch.testing.assert_close(picked[1], x[1] + 0.1)


@pytest.mark.parametrize(
    ("side", "shift", "box", "last"), [(28, 4, 14, 28), (32, 4, 16, 32), (64, 8, 32, 64), (9, 1, 5, 8)]
)
def test_integer_parameters_cover_their_whole_range(side, shift, box, last):
    table = augment.draw("crop_cutout", 20_000, (side, side), generator(side, "range")).table
    assert (table[:, 4].min(), table[:, 4].max()) == (-shift, shift)
    assert (table[:, 10].min(), table[:, 10].max()) == (0, last)
    images = torch.ones(last + 1, 1, side, side)
    columns = {"cut_row": torch.arange(last + 1.0), "cut_column": torch.full((last + 1,), side // 2)}
    kept = ops.augment(images, augment.parameters(last + 1, **columns), augment.program("cutout"))
    kept = kept[:, 0, :, side // 2].sum(1)
    for centre, rows in enumerate(side - kept):
        expected = min(side - 1, centre - box // 2 + box - 1) - max(0, centre - box // 2) + 1
        assert rows == expected


def test_an_unknown_operation_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="Did you mean 'rotate'"):
        augment.parse("color_rotat")
    with pytest.raises(InputError, match="composed, single and all"):
        augment.draw("color", 1, (8, 8), generator(0, "x"), mode="every")


def test_cutmix_weights_labels_by_the_area_it_kept():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 32, 32)
    targets = torch.eye(6)
    for seed in range(20):
        mixed, labels = augment.cutmix(images, targets, generator(seed, "cutmix"))
        for sample in range(6):
            share = torch.bincount(mixed[sample, 0].flatten().long(), minlength=6) / 1024
            torch.testing.assert_close(labels[sample], share, atol=1e-6, rtol=0)
