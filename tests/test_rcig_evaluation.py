from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from small import image_set

from ddlnl import preprocess, rcig_augment, rcig_evaluation, training
from ddlnl.errors import InputError
from ddlnl.generators import generator
from ddlnl.rcig_evaluation import Protocol


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0), (1, 2e-7), (250, 5e-5), (499, 9.98e-5), (500, 1e-4), (1250, 5.05e-5), (2000, 1e-6), (4999, 1e-6)],
)
def test_the_schedule_has_the_published_values(step, expected):
    assert Protocol().rate(step, 20) == pytest.approx(expected, rel=1e-9, abs=1e-20)
    assert Protocol().rate(1999, 20) == pytest.approx(1.0001e-6, rel=1e-5)


@pytest.mark.parametrize(("images", "augmentation", "steps"), [(10, "flip", 1000), (10, "", 2500), (100, "", 5000)])
def test_ten_images_have_half_the_steps_and_no_augmentation_goes_on_longer(images, augmentation, steps):
    protocol = Protocol(augmentation=augmentation)
    assert protocol.total(images) == steps
    assert protocol.tested_steps(images) == list(range(500, steps + 1, 500))


def test_published_protocols_follow_the_dataset():
    assert rcig_evaluation.published_protocol("cifar10", 1) == Protocol()
    assert Protocol().without_augmentation() == Protocol(augmentation="")
    assert rcig_evaluation.published_protocol("mnist", 10).augmentation == "crop_rotate_translate_cutout"
    tiny = rcig_evaluation.published_protocol("tiny_imagenet", 10)
    assert (tiny.depth, tiny.mirror) == (4, False)
    with pytest.raises(InputError, match="no published settings for the dataset 'digits'"):
        rcig_evaluation.published_protocol("digits", 1)


def separable(count, seed):
    """Images (count, 3, 8, 8) whose bright half tells one of two classes."""
    labels = torch.arange(count) % 2
    images = 0.1 * torch.randn(count, 3, 8, 8, generator=generator(seed, "test"))
    images[labels == 0, :, :4] += 1
    images[labels == 1, :, 4:] += 1
    return images, labels


class Memory:
    def __init__(self, at):
        self.at, self.kept = at, None

    def load(self):
        return self.kept

    def paused(self):
        return contextlib.nullcontext()

    def save(self, step, state):
        if step == self.at:
            self.kept = step, {name: tensor.clone() for name, tensor in state().items()}


@pytest.mark.parametrize("augmentation", ["", "color_crop_translate_cutout"])
def test_students_learn_a_separable_problem_and_resume_exactly(augmentation):
    images, labels = separable(6, 0)
    targets = training.one_hot(labels, 2) - 0.5
    protocol = Protocol(1, 8, True, augmentation, steps=60, lr=3e-3, warmup=10, batch=4)
    memory = Memory(at=30)
    exams = {"test": separable(50, 1), "validation": separable(20, 2)}
    curves = rcig_evaluation.train_students(images, targets, protocol, exams, [0, 1], memory)
    assert [student[-1] for student in curves.test] == [1, 1]
    assert curves.epochs == [60 if augmentation else 150]
    again = rcig_evaluation.train_students(images, targets, protocol, exams, [0, 1], memory)
    assert again == curves
    alone = rcig_evaluation.train_students(images, targets, protocol, exams, [1])
    assert alone.test == curves.test[1:]


def test_students_that_diverge_are_refused():
    images, labels = separable(4, 0)
    protocol = Protocol(1, 4, steps=5, lr=1e30, warmup=1)
    with pytest.raises(training.NotFinite, match="students"):
        rcig_evaluation.train_students(images, training.one_hot(labels, 2), protocol, {"test": separable(4, 1)}, [0])


def test_students_whose_weights_are_finite_and_whose_logits_are_not_are_refused():
    images, labels = separable(4, 0)
    protocol = Protocol(1, 4, steps=1, lr=1e37, warmup=0)
    with pytest.raises(training.NotFinite, match=r"The logits of RCIG's students are not finite after step 1"):
        rcig_evaluation.train_students(images, training.one_hot(labels, 2), protocol, {"test": separable(4, 1)}, [0])


def one(strategy, images, seed=0):
    return rcig_augment.draw(strategy, len(images), images.shape[2], generator(seed, "test"))(images)


def ramp(count=400, side=16):
    """The same image many times: channel 0 is the column, channel 1 the row, channel 2 one."""
    place = torch.arange(float(side))
    image = torch.stack([place.expand(side, side), place[:, None].expand(side, side), torch.ones(side, side)])
    return image.repeat(count, 1, 1, 1)


def test_each_image_has_exactly_one_operation_each_equally_likely():
    drawn = rcig_augment.draw(rcig_augment.ALL, 6000, 16, generator(0, "test"))
    sizes = [len(drawn.color), len(drawn.cutout), len(drawn.moved), len(drawn.flip)]
    together = torch.cat([drawn.color, drawn.cutout, drawn.moved, drawn.flip])
    assert len(together.unique()) == len(together)
    for size, share in zip(sizes, (1 / 6, 1 / 6, 1 / 2, 1 / 12), strict=True):
        assert size / 6000 == pytest.approx(share, abs=0.02)


def test_flip_mirrors_half_of_the_images():
    images = ramp()
    flipped = one("flip", images)
    mirror = [torch.equal(image, images[0].flip(-1)) for image in flipped]
    assert 0.4 < sum(mirror) / 400 < 0.6
    assert all(m or torch.equal(image, images[0]) for m, image in zip(mirror, flipped, strict=True))


def test_translation_and_rotation_move_about_the_centre_within_their_bounds():
    images = ramp()
    shift = one("translate", images)[:, :2, 8, 8] - images[:, :2, 8, 8]
    assert 1.8 < shift.abs().max() <= 2
    assert shift.abs().min(0).values.max() < 0.1
    middle = one("rotate", images)[:, :2, 7:9, 7:9]
    torch.testing.assert_close(middle.mean((2, 3)), torch.full((400, 2), 7.5))
    slope = torch.atan2(*(middle[:, 1 - c, :, 1] - middle[:, 1 - c, :, 0] for c in (0, 1))).mean(1)
    assert math.radians(14) < slope.abs().max() <= math.radians(15) + 1e-4


def test_crop_zooms_log_uniformly_and_keeps_a_zoomed_in_window_inside():
    moved = one("crop", ramp())
    width = moved[:, 0, 8, 9] - moved[:, 0, 8, 8]
    assert width.min().item() == pytest.approx(0.8, abs=0.01)
    assert width.max().item() == pytest.approx(1.25, abs=0.01)
    assert width.log().mean().abs() < 0.02
    ends = 2 * (moved[:, 0, 8, 8] - 7.5 - 0.5 * width)  # twice the shift of the centre
    reach = (1 - width).abs() * 16
    assert ((ends.abs() - reach) < 1e-3).all()


def test_color_shifts_and_stretches_and_cutout_blanks_a_quarter_of_the_side():
    images = ramp()
    changed = one("color", images)
    offset = (changed - images).mean((1, 2, 3))
    assert offset.abs().max() <= 0.2501
    difference = (changed[:, 0] - changed[:, 1])[:, 0, 5] / (images[:, 0] - images[:, 1])[:, 0, 5]
    assert math.exp(-0.5) <= difference.min() <= difference.max() <= math.exp(0.5)
    holes = one("cutout", images)[:, 2] == 0
    assert (holes.sum((1, 2)) == 16).all()
    assert holes[:, 0, 0].any()
    assert holes[:, 15, 15].any()


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(InputError, match="rotat"):
        rcig_augment.draw("flip_rotat", 1, 8, generator(0, "test"))


def correlated(count=400, side=4):
    """Random uint8 images (count, side, side, 3) with strong correlations."""
    source = np.random.default_rng(0)
    base = source.normal(size=(count, 1, 1, 1)) + 0.5 * source.normal(size=(count, side, side, 3))
    return np.clip(128 + 40 * base, 0, 255).astype(np.uint8)


def test_whitening_has_the_eigenvalues_of_the_published_definition_and_inverts():
    images = correlated()
    fitted = preprocess.fit(images, "zca-relative", "cifar10")
    pixels = preprocess.to_float(images).double()
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in preprocess.PUBLISHED_RELATIVE["cifar10"])
    z = ((pixels - mean[:, None, None]) / std[:, None, None]).flatten(1)
    values = torch.linalg.eigvalsh(torch.cov(z.T, correction=0))
    ridge = 0.1 * values.mean()
    white = fitted.apply(pixels)
    found = torch.linalg.eigvalsh(torch.cov(white.flatten(1).T, correction=0))
    torch.testing.assert_close(found, values / (values + ridge), rtol=1e-4, atol=1e-4)
    assert white.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(fitted.invert(white), pixels, rtol=0, atol=1e-4)


def test_fewer_images_than_dimensions_leave_the_other_eigenvalues_at_one():
    images = correlated(30)
    fitted = preprocess.fit(images, "zca-relative", "cifar10")
    std = torch.tensor(preprocess.PUBLISHED_RELATIVE["cifar10"][1]).repeat_interleave(16)
    values = torch.linalg.eigvalsh((fitted.whiten * std[:, None]).double())
    assert ((values - 1).abs() < 1e-3).sum() >= 48 - 30


def test_grey_images_are_normalised_by_their_published_constants_only():
    images = image_set(channels=1).images
    fitted = preprocess.fit(images, "zca-relative", "mnist")
    assert fitted.kind == "normalise"
    assert fitted.mean.tolist() == pytest.approx([0.1307])
    assert preprocess.fit(images, "zca-relative", "own").scale.item() == pytest.approx(images.std() / 255, rel=1e-5)


def test_large_colour_images_are_refused():
    with pytest.raises(InputError, match="64"):
        preprocess.fit(np.zeros((2, 128, 128, 3), np.uint8), "zca-relative", "imagenette")
