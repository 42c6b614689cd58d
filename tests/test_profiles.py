from __future__ import annotations

import pytest

from ddlnl.profiles import PROFILES, depth_for


def test_the_paper_profile_trains_students_as_published():
    student = PROFILES["paper"].student
    recipe = student.recipe_for(2000)
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.weight_decay) == (
        1500,
        64,
        0.01,
        0.9,
        5e-4,
    )
    assert [recipe.rate(epoch) for epoch in (0, 999, 1000, 1249, 1250)] == pytest.approx([0.01, 0.01, 2e-3, 2e-3, 4e-4])
    assert (recipe.augmentation, recipe.cutmix) == ("color_crop_flip_scale_rotate", 0.5)
    assert student.tested_epochs(recipe.epochs) == [250, 500, 750, 1000, 1250, 1500]
    assert (student.architecture.width, student.architecture.norm) == (128, "instance")
    assert PROFILES["paper"].train_images is None


def test_the_full_set_of_the_paper_profile_is_tested_after_every_epoch():
    full = PROFILES["paper"].full
    assert full.tested_epochs(full.recipe.epochs) == list(range(1, 61))


@pytest.mark.parametrize("name", PROFILES)
def test_digits_are_never_mirrored_and_other_images_are(name):
    digits, cifar = (PROFILES[name].for_dataset(dataset, size) for dataset, size in (("digits", 8), ("cifar10", 32)))
    for protocol in ("student", "full"):
        assert "flip" not in getattr(digits, protocol).recipe.augmentation
        assert "flip" in getattr(cifar, protocol).recipe.augmentation


def test_depth_follows_the_image_size_as_published():
    assert [depth_for(size) for size in (8, 28, 32, 64, 128)] == [2, 3, 3, 4, 5]
    tiny = PROFILES["paper"].for_dataset("tiny_imagenet", 64)
    assert {tiny.dance.architecture.depth, tiny.student.architecture.depth, tiny.full.architecture.depth} == {4}


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_says_what_it_leaves_out(name):
    assert PROFILES[name].reductions
