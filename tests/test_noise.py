"""Label noise and class imbalance."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import balanced, image_set, refusal

from ddlnl import noise, transitions
from ddlnl.datasets import Dataset, ImageSet, label_hash, load

FIRST_CLEAN = {"cifar10": "6 9 9 4 1 1 2 7 8 3 4 7", "cifar100": "19 29 0 11 1 86 90 28 23 31 39 96"}
CLEAN_HASHES = {"cifar10": "f5cfe00b0f00968c", "cifar100": "8bf4935e7c77a309", "tiny_imagenet": "d6886bd1c321bc71"}

# Dataset, noise, realised rate, smallest and largest observed class, hash and first twelve observed labels, for seed 0.
STUDY = """
cifar10       symmetric:0.2         0.20076 4937 5043 a690162d9e3a1472 6 9 4 4 8 1 2 7 4 3 4 7
cifar10       symmetric:0.4         0.40084 4919 5049 d9bcbe8cf3afcbe5 6 1 9 2 1 1 6 6 8 3 0 7
cifar10       symmetric:0.6         0.60024 4901 5166 175570b96f1b55a2 6 1 4 5 0 6 8 1 8 4 4 7
cifar10       symmetric:0.8         0.79742 4879 5171 581c936bdf0d3014 7 0 4 4 1 6 9 1 8 4 8 6
cifar10       asymmetric:0.2        0.09878 3959 6041 dbde365cfbc56514 6 9 9 4 1 1 2 7 8 3 4 7
cifar10       asymmetric:0.4        0.19746 3007 6993 08a18863483f840e 6 1 1 4 1 1 2 7 8 5 4 7
cifar10       asymmetric:0.6        0.30204 1989 8011 a9cf926ddb2cc856 6 9 9 7 1 1 2 7 8 5 4 7
cifar10       asymmetric:0.78       0.38896 1089 8911 416bd12442270357 6 1 1 7 1 1 2 7 8 5 4 7
cifar10       asymmetric:0.8        0.40202  962 9038 7b98f21860b323f4 6 1 1 7 1 1 2 7 8 5 4 7
cifar100      symmetric:0.2         0.20108  465  531 c61e9ee74a27a764 52 29 0 11 1 51 90 28 23 31 39 96
cifar100      symmetric:0.4         0.40224  455  544 d8ff1b595ed9955c 52 29 66 11 48 86 90 28 33 31 39 71
cifar100      symmetric:0.6         0.59980  448  543 70d112f37c004913 19 32 94 1 1 86 90 90 30 26 83 32
cifar100      symmetric:0.8         0.79904  449  544 083cb30d83286c92 19 32 94 1 1 58 75 90 23 45 3 26
cifar100      asymmetric-head:0.2   0.19754  457  538 226e2eb99beed263 19 29 0 11 1 86 90 61 23 31 39 47
cifar100      asymmetric-head:0.4   0.39486  466  543 99e215e4d7e2ecf0 19 44 0 11 32 87 90 28 23 38 39 96
cifar100      asymmetric-head:0.6   0.59620  461  529 2b053acf769c2394 21 29 51 11 32 86 8 28 33 31 40 47
cifar100      asymmetric-head:0.8   0.79348  467  535 2fb618d6608838ec 21 44 51 35 1 87 8 61 33 38 40 96
cifar100      asymmetric-first:0.2  0.20022  468  535 e7433c7487d1d7f6 19 29 0 11 1 87 90 28 23 31 35 96
cifar100      asymmetric-first:0.4  0.39770  461  537 444b1581176e8b69 19 25 0 11 2 87 90 29 23 32 39 97
cifar100      asymmetric-first:0.6  0.60160  472  541 326d2e2181745416 15 29 1 11 2 86 91 29 23 32 35 96
cifar100      asymmetric-first:0.8  0.80168  473  532 b1ba1a2f562eda81 15 25 1 12 2 86 91 29 23 32 35 96
cifar100      asymmetric:0.2        0.19952  465  535 92690dadf9bf9887 19 29 0 11 1 86 90 61 23 31 39 47
cifar100      asymmetric:0.4        0.39720  464  536 204cbeea43a21add 19 44 0 11 32 87 90 28 23 38 39 96
cifar100      asymmetric:0.6        0.59962  457  542 53e5b70d4cd8fcbc 21 29 51 11 32 86 8 28 33 31 40 47
cifar100      asymmetric:0.8        0.79970  471  524 75ea1d900dd49bab 21 44 51 35 1 87 8 61 33 38 40 96
tiny_imagenet symmetric:0.2         0.20209  461  539 d4e078c052c4bc8d 0 0 0 0 0 0 0 142 0 198 0 0
tiny_imagenet symmetric:0.4         0.40086  450  546 f41a4edefdae76b4 0 148 0 198 101 0 0 24 0 0 0 0
tiny_imagenet symmetric:0.6         0.60006  454  553 d0cd5ab9d07b7b80 149 199 0 0 100 26 116 23 146 184 22 53
tiny_imagenet symmetric:0.8         0.80106  447  568 2959a3d9425cf98d 149 198 0 101 26 116 23 146 184 22 53 96
"""


@functools.cache
def archived(name: str, folder: object) -> Dataset:
    return load(name, folder)


@pytest.fixture(scope="session")
def train(archive):
    """Training sets by name; that of Tiny-ImageNet has its label order and no pictures."""
    tiny = image_set(np.repeat(np.arange(200), 500), "tiny_imagenet")
    return lambda name: tiny if name == "tiny_imagenet" else archived(name, archive(name)).train


@pytest.mark.parametrize("line", STUDY.split("\n")[1:-1], ids=lambda line: "-".join(line.split()[:2]))
def test_seed_0_reproduces_the_label_vectors_of_the_study(train, line):
    name, spec, rate, smallest, largest, digest, *first = line.split()
    noisy = noise.corrupt(train(name), spec)
    sizes = np.bincount(noisy.observed)
    assert label_hash(noisy.observed) == digest
    assert f"{noise.realised_rate(noisy):.5f}" == rate
    assert [sizes.min(), sizes.max()] == [int(smallest), int(largest)]
    assert [str(label) for label in noisy.observed[:12]] == first
    assert noisy.noise == spec


@pytest.mark.parametrize("name", CLEAN_HASHES)
def test_clean_labels_are_the_published_ones(train, name):
    clean = noise.corrupt(train(name), "clean")
    assert label_hash(clean.observed) == label_hash(clean.clean) == CLEAN_HASHES[name]
    assert " ".join(map(str, clean.clean[:12])) == FIRST_CLEAN.get(name, "0 0 0 0 0 0 0 0 0 0 0 0")
    assert noise.realised_rate(clean) == 0
    assert np.array_equal(clean.transition, np.eye(clean.num_classes))


def test_asymmetric_cifar10_gives_the_class_sizes_of_the_study(train):
    sizes = np.bincount(noise.corrupt(train("cifar10"), "asymmetric:0.4").observed)
    assert sizes.tolist() == [6964, 6957, 3036, 5061, 3007, 4939, 5000, 6993, 5000, 3043]


def test_noise_changes_the_observed_training_labels_and_nothing_else():
    data = load("digits")
    before = data.train.observed.copy()
    test = data.test.observed.copy()
    noisy = noise.corrupt(data.train, "symmetric:0.8")
    assert noisy.images is data.train.images
    assert np.array_equal(noisy.clean, before)
    assert np.array_equal(data.train.observed, before)
    assert np.array_equal(data.test.observed, test)
    assert noisy.observed.dtype == np.int64
    assert not np.array_equal(noisy.observed, before)


@pytest.mark.parametrize("spec", ["symmetric:0.3", "pairflip:0.3", "instance:0.3", "asymmetric:0.3"])
def test_a_seed_gives_the_same_labels_again_and_another_seed_other_ones(spec):
    whole = balanced(10, 30, "cifar10", side=4)
    draws = [noise.corrupt(whole, spec, seed).observed for seed in (0, 1, 2, np.int64(2))]
    assert all(np.array_equal(noise.corrupt(whole, spec, seed).observed, draws[seed]) for seed in (0, 1, 2))
    assert np.array_equal(draws[2], draws[3])
    assert len({label_hash(draw) for draw in draws}) == 3


def test_noise_starts_from_the_clean_labels_however_often_it_is_applied():
    whole = balanced(10, 100)
    once = noise.corrupt(whole, "symmetric:0.4", 1)
    again = noise.corrupt(noise.corrupt(whole, "pairflip:0.8", 1), "symmetric:0.4", 1)
    assert np.array_equal(once.observed, again.observed)
    assert np.array_equal(once.transition, again.transition)


def test_both_samplers_draw_from_the_nominal_matrix():
    """Chi-squared over all entries of the matrix, at six standard deviations."""
    whole = balanced(10, 4000, "digits")
    for spec in ("symmetric:0.6", "asymmetric:0.3", "pairflip:0.45"):
        for seed in (0, 1):
            noisy = noise.corrupt(whole, spec, seed)
            expected = 4000 * noisy.transition
            counts = 4000 * noise.realised_transition(noisy)
            possible = expected > 0
            assert not counts[~possible].any()
            freedom = possible.sum() - 10
            chi = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
            assert abs(chi - freedom) < 6 * np.sqrt(2 * freedom), (spec, seed)


@settings(deadline=None)
@given(st.integers(2, 30), st.floats(0, 1), st.sampled_from(["symmetric", "pairflip"]))
def test_rows_of_a_nominal_matrix_are_distributions(classes, rate, kind):
    matrix = noise.transition_matrix(noise.parse(f"{kind}:{rate!r}"), "own", classes)
    assert matrix.shape == (classes, classes)
    assert matrix.dtype == np.float64
    assert (matrix >= 0).all()
    assert np.allclose(matrix.sum(axis=1), 1, atol=1e-12, rtol=0)
    assert np.allclose(np.diag(matrix), 1 - rate, atol=1e-12, rtol=0)
    assert np.allclose(matrix.sum(axis=0), 1, atol=1e-12, rtol=0)  # class sizes stay as they are


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.floats(0.05, 0.95), st.integers(1, 10**6), st.sampled_from(["symmetric", "pairflip"]))
def test_the_realised_rate_is_close_to_the_nominal_one(classes, rate, seed, kind):
    noisy = noise.corrupt(balanced(classes, 400), f"{kind}:{rate!r}", seed)
    deviation = np.sqrt(rate * (1 - rate) / len(noisy))
    assert abs(noise.realised_rate(noisy) - rate) < 6 * deviation
    assert np.allclose(noise.realised_transition(noisy).sum(axis=1), 1)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1, max_size=50), st.data())
def test_a_label_without_probability_is_never_drawn(weights, data):
    rows = np.array([row if any(row) else [0, 0, 1, 0] for row in weights], dtype=float)
    edge = st.sampled_from([0.0, np.nextafter(1, 0)]) | st.floats(0, 1, exclude_max=True)
    uniform = np.array(data.draw(st.lists(edge, min_size=len(rows), max_size=len(rows))))
    drawn = noise._inverse_cdf(rows / rows.sum(axis=1, keepdims=True), uniform)
    assert (rows[np.arange(len(rows)), drawn] > 0).all()


def test_asymmetric_cifar100_flips_inside_the_superclasses():
    corrected, head, first = (
        noise.transition_matrix(noise.parse(f"{kind}:0.4"), "cifar100", 100)
        for kind in ("asymmetric", "asymmetric-head", "asymmetric-first")
    )
    assert sorted(label for group in transitions.SUPERCLASSES for label in group) == list(range(100))
    for group in transitions.SUPERCLASSES:
        assert np.allclose(corrected[np.ix_(group, group)].sum(axis=1), 1)
    assert [np.count_nonzero(matrix.diagonal() == 1) for matrix in (corrected, head, first)] == [0, 1, 0]
    assert corrected[36, 50] == corrected[50, 65] == head[36, 65] == first[4, 0] == first[0, 1] == 0.4
    assert head[50, 50] == 1
    assert (np.flatnonzero((corrected != head).any(axis=1)) == [36, 50]).all()


def test_digits_flip_in_the_pairs_of_mnist():
    matrix = noise.transition_matrix(noise.parse("asymmetric:0.25"), "digits", 10)
    flips = {tuple(pair) for pair in np.argwhere(matrix == 0.25).tolist()}
    assert flips == {(7, 1), (2, 7), (3, 8), (5, 6), (6, 5)}


def test_pairflip_swaps_fixed_pairs_of_ten_classes_and_cycles_any_other_number():
    ten = noise.transition_matrix(noise.parse("pairflip:0.3"), "cifar10", 10)
    assert np.array_equal(ten, ten.T)
    assert {tuple(sorted(pair)) for pair in np.argwhere(ten == 0.3).tolist()} == {
        (1, 9),
        (0, 2),
        (4, 7),
        (3, 5),
        (6, 8),
    }
    three = noise.transition_matrix(noise.parse("pairflip:0.3"), "own", 3)
    assert three.tolist() == [[0.7, 0.3, 0], [0, 0.7, 0.3], [0.3, 0, 0.7]]


def test_instance_noise_depends_on_the_image():
    whole = balanced(10, 400, side=8)
    noisy = noise.corrupt(whole, "instance:0.4", 5)
    assert noise.realised_rate(noisy) == pytest.approx(0.4, abs=0.05)
    assert np.array_equal(noisy.transition, noise.realised_transition(noisy))
    # The same image three times over is flipped to nearly the same class each time, different images are not.
    images = np.repeat(whole.images[:300], 3, axis=0)
    labels = np.zeros(900, dtype=int)
    labels[:10] = np.arange(10)
    copies = ImageSet(images, labels, labels, whole.class_names, "own")
    observed = noise.corrupt(copies, "instance:1", 5).observed[30:].reshape(-1, 3)
    flipped = (observed != 0).all(axis=1)
    agree = (observed[flipped] == observed[flipped][:, :1]).all(axis=1).mean()
    assert flipped.mean() > 0.5
    assert agree > 0.5
    assert len(np.unique(observed[flipped])) > 5


def test_instance_noise_is_the_same_in_chunks_of_any_size(monkeypatch):
    whole = balanced(5, 40, side=3)
    drawn = noise.corrupt(whole, "instance:0.5", 2).observed
    monkeypatch.setattr(noise, "CHUNK", 7)
    assert np.array_equal(noise.corrupt(whole, "instance:0.5", 2).observed, drawn)


def test_human_labels_are_taken_as_they_are_whatever_the_seed():
    given_labels = np.arange(60) % 4
    whole = image_set(np.arange(60) % 5 % 4, human={"worst": given_labels})
    for seed in (0, 7):
        noisy = noise.corrupt(whole, "human:worst", seed)
        assert np.array_equal(noisy.observed, given_labels)
        assert noisy.noise == "human:worst"
        assert np.array_equal(noisy.transition, noise.realised_transition(noisy))
    assert noise.parse("human:worst").rate is None


@settings(deadline=None)
@given(st.sampled_from(noise.RATED), st.floats(0, 1))
def test_a_parsed_noise_is_written_so_that_it_parses_to_itself(kind, rate):
    parsed = noise.parse(f"{kind}:{rate!r}")
    assert noise.parse(str(parsed)) == parsed
    assert parsed.rate == rate
    assert (str(parsed) == "clean") == (rate == 0)


def test_one_noise_has_one_name():
    assert {str(noise.parse(f"symmetric:{rate}")) for rate in ("0.4", ".4", "0.40", "4e-1")} == {"symmetric:0.4"}
    assert {str(noise.parse(spec)) for spec in ("clean", "symmetric:0", "asymmetric:0.0", "pairflip:-0.0")} == {"clean"}
    assert str(noise.parse("symmetric:1.0")) == "symmetric:1"
    assert str(noise.parse("human:noisy_fine")) == "human:noisy_fine"


BAD_SPECS = ["", "symmetric", "symmetric:", "symmetric:x", "symmetric:nan", "symmetric:inf", "symmetric:1.01"]
BAD_SPECS += [
    "symmetric:-0.1",
    "symmetric:0.4:0.2",
    "clean:0.4",
    "clean:",
    "human",
    "human:",
    "human:a b",
    "uniform:0.4",
    "0.4",
]


@pytest.mark.parametrize("spec", BAD_SPECS)
def test_a_bad_noise_is_refused_in_one_sentence(spec):
    assert repr(spec) in refusal(noise.parse, spec)
    refusal(noise.corrupt, balanced(3, 5), spec)


def test_a_misspelt_noise_is_answered_with_the_nearest_one():
    assert refusal(noise.parse, "symetric:0.4").endswith("Did you mean 'symmetric'?")
    assert refusal(noise.parse, "asymmetric_head:0.4").endswith("Did you mean 'asymmetric-head'?")


@pytest.mark.parametrize("seed", [-1, 0.0, "0", None, True])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    assert repr(seed) in refusal(noise.corrupt, balanced(3, 5), "symmetric:0.4", seed)


def test_noise_that_a_dataset_does_not_have_is_refused():
    for name, spec in (
        ("tiny_imagenet", "asymmetric:0.4"),
        ("own", "asymmetric:0.4"),
        ("cifar10", "asymmetric-head:0.4"),
        ("digits", "asymmetric-first:0.4"),
    ):
        assert name in refusal(noise.corrupt, balanced(10, 5, name), spec)
    assert "3 classes" in refusal(noise.corrupt, balanced(3, 5, "cifar10"), "asymmetric:0.4")
    message = refusal(noise.corrupt, image_set(np.arange(9) % 3, human={"aggre": np.arange(9) % 3}), "human:worst")
    assert "it has aggre" in message
    assert "import-cifar-n" in message
    for spec in ("instance:0.4", "human:aggre"):
        assert "no nominal matrix" in refusal(noise.transition_matrix, noise.parse(spec), "own", 3)


def test_noise_that_empties_a_class_is_refused():
    assert "leaves no training image with the label class 2" in refusal(
        noise.corrupt, balanced(10, 50, "cifar10"), "asymmetric:1"
    )
    assert "class 1" in refusal(
        noise.corrupt, image_set(np.arange(9) % 3, human={"lazy": np.array([0, 2, 2] * 3)}), "human:lazy"
    )


def test_every_noise_that_a_training_set_can_have_is_listed_once_and_can_be_drawn():
    people = {"aggre": np.arange(40) % 10, "worst": np.arange(40)[::-1] % 10}
    own, digits = image_set(np.arange(40) % 10, human=people), load("digits").train
    assert noise.available(own, [0.0, 0.4, 0.4]) == ["clean", "symmetric:0.4", "human:aggre", "human:worst"]
    structured = ["asymmetric:0.2", "asymmetric:0.8"]
    assert noise.available(digits, [0.2, 0.8]) == ["clean", "symmetric:0.2", "symmetric:0.8", *structured]
    for train in (own, digits):
        for spec in noise.available(train, [0.2, 0.4]):
            assert noise.corrupt(train, spec).noise == spec
    assert noise.available(balanced(3, 5, "cifar10"), [0.4]) == ["clean", "symmetric:0.4"]


def test_natural_noise_is_that_of_people_where_they_gave_labels_and_else_depends_on_the_instance():
    people = {"aggre": np.arange(40) % 10, "worst": np.arange(40)[::-1] % 10}
    own = image_set(np.arange(40) % 10, human=people)
    assert noise.natural(own, [0.4]) == ("human", ["clean", "human:aggre", "human:worst"])
    digits = load("digits").train
    kind, specs = noise.natural(digits, [0.0, 0.2, 0.4])
    assert (kind, specs) == ("instance", ["clean", "instance:0.2", "instance:0.4"])
    assert [noise.corrupt(digits, spec).noise for spec in specs] == specs
