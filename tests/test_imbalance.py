"""Class imbalance of training sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import balanced, image_set, refusal

from ddlnl import noise
from ddlnl.datasets import ImageSet


def test_a_long_tail_has_the_sizes_of_the_literature():
    whole = balanced(10, 5000)
    sizes = np.bincount(noise.imbalance(whole, "longtail:100").clean)
    assert sizes.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert np.bincount(noise.imbalance(whole, "step:100").clean).tolist() == [5000] * 5 + [50] * 5
    assert np.bincount(noise.imbalance(balanced(3, 90), "step:9").clean).tolist() == [90, 10, 10]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 12), st.integers(10, 60), st.floats(1, 10), st.sampled_from(["longtail", "step"]), st.integers(0, 99)
)
def test_imbalance_keeps_order_labels_and_the_ratio_of_sizes(classes, each, factor, kind, seed):
    whole = balanced(classes, each)
    human = {"position": whole.clean}
    whole = ImageSet(whole.images, whole.clean, whole.clean, whole.class_names, "own", human)
    part = noise.imbalance(whole, f"{kind}:{factor!r}", seed)
    sizes = np.bincount(part.clean)
    assert sizes[0] == each
    assert sizes[-1] == np.floor(each / factor + 1e-9)
    assert (np.diff(sizes) <= 0).all()
    assert np.array_equal(part.human["position"], part.clean)
    assert np.array_equal(part.observed, part.clean)
    assert len(part.images) == len(part) == sizes.sum()


def test_imbalance_draws_by_seed_keeps_dataset_order_and_nests():
    positions = np.arange(250, dtype=np.uint8)
    images = np.tile(positions, 2).reshape(500, 1, 1, 1)
    clean = np.repeat(np.arange(2), 250)
    whole = ImageSet(images, clean, clean, ("a", "b"), "own")

    def kept(spec: str, seed: int) -> list[int]:
        part = noise.imbalance(whole, spec, seed)
        return part.images[part.clean == 1].ravel().tolist()

    assert kept("longtail:5", 0) == kept("longtail:5", 0) == sorted(kept("longtail:5", 0))
    assert kept("longtail:5", 0) != kept("longtail:5", 1)
    assert set(kept("longtail:50", 0)) < set(kept("longtail:5", 0))


def test_no_imbalance_keeps_everything():
    whole = balanced(3, 7)
    assert all(noise.imbalance(whole, spec) is whole for spec in ("none", "longtail:1", "step:1"))


def test_imbalance_of_a_small_class_keeps_what_there_is():
    sizes = np.bincount(noise.imbalance(image_set(np.repeat([0, 1, 2], [100, 5, 40])), "longtail:4").clean)
    assert sizes.tolist() == [100, 5, 25]


@pytest.mark.parametrize(
    "spec",
    ["", "longtail", "longtail:", "longtail:0.5", "longtail:nan", "step:inf", "step:x", "none:3", "tail:10", "step:-2"],
)
def test_a_bad_imbalance_is_refused_in_one_sentence(spec):
    assert repr(spec) in refusal(noise.imbalance, balanced(3, 5), spec)


def test_imbalance_after_noise_or_down_to_nothing_is_refused():
    assert "before noise" in refusal(noise.imbalance, noise.corrupt(balanced(3, 50), "symmetric:0.2"), "longtail:2")
    assert "at most 5" in refusal(noise.imbalance, balanced(3, 5), "longtail:6")
