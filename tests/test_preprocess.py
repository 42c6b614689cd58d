from __future__ import annotations

import kornia
import numpy as np
import pytest
import torch
from small import image_set

from ddlnl import preprocess
from ddlnl.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 6, 6, 3)).astype(np.uint8) // np.array([1, 2, 3], np.uint8)


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_preprocessing_can_be_inverted(kind):
    images = preprocess.to_float(IMAGES)
    fitted = preprocess.fit(IMAGES, kind)
    torch.testing.assert_close(fitted.invert(fitted.apply(images)), images, atol=1e-5, rtol=0)


def test_zca_whitens_as_kornia_does():
    flat = preprocess.to_float(IMAGES).flatten(1).double()
    expected = kornia.enhance.ZCAWhitening(eps=0.1, unbiased=True).fit(flat)(flat)
    fitted = preprocess.fit(IMAGES, "zca")
    torch.testing.assert_close(
        fitted.apply(preprocess.to_float(IMAGES)).flatten(1).double(), expected, atol=1e-5, rtol=0
    )


def test_zca_leaves_the_covariance_that_its_ridge_implies():
    images = preprocess.to_float(IMAGES)
    values, vectors = torch.linalg.eigh(torch.cov(images.flatten(1).T.double()))
    expected = (vectors * (values / (values + 0.1))) @ vectors.T
    whitened = preprocess.fit(IMAGES, "zca").apply(images).flatten(1).double()
    torch.testing.assert_close(torch.cov(whitened.T), expected, atol=1e-5, rtol=0)


def test_normalised_training_images_have_mean_zero_and_deviation_one():
    normalised = preprocess.fit(IMAGES, "normalise").apply(preprocess.to_float(IMAGES))
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_the_published_constants_serve_both_cifar_sets_and_nothing_else():
    for name in ("cifar10", "cifar100"):
        fitted = preprocess.fit(IMAGES, "normalise-published", name)
        assert fitted.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
        assert fitted.scale.tolist() == pytest.approx([0.2023, 0.1994, 0.2010])
    own = preprocess.fit(IMAGES, "normalise")
    assert preprocess.fit(IMAGES, "normalise-published", "digits").hash == own.hash


def test_fitting_twice_gives_the_same_hash_and_other_images_another():
    assert preprocess.fit(IMAGES, "zca").hash == preprocess.fit(IMAGES.copy(), "zca").hash
    assert preprocess.fit(IMAGES, "normalise").hash != preprocess.fit(IMAGES[:100], "normalise").hash


def test_two_preprocessings_refuse_to_be_mixed():
    first, second = preprocess.fit(IMAGES, "normalise"), preprocess.fit(IMAGES[:50], "normalise")
    first.require_same(preprocess.fit(IMAGES, "normalise"))
    with pytest.raises(InputError, match="cannot be mixed"):
        first.require_same(second)


def test_a_constant_channel_or_unknown_kind_is_refused():
    with pytest.raises(InputError, match="every channel must vary"):
        preprocess.fit(np.zeros_like(image_set().images), "normalise")
    with pytest.raises(InputError, match="Did you mean 'zca'"):
        preprocess.fit(IMAGES, "zcaa")
