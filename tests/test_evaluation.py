from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small import image_set, profile

from ddlnl import DistilledSet, evaluation, preprocess, training
from ddlnl.curves import Curves
from ddlnl.distilled import concatenate
from ddlnl.errors import DamagedError, InputError
from ddlnl.evaluation import select

FIRST = Curves([1, 2], test=[[0.5, 0.6], [0.9, 0.4]], validation=[[0.3, 0.2], [0.3, 0.2]], confusion=[])
LAST = Curves([1, 2], test=[[0.1, 0.2], [0.3, 0.4]], validation=[[0.1, 0.25], [0.1, 0.3]], confusion=[])


def small_set(**changes):
    train = image_set(per_class=4)
    labels = training.one_hot(torch.from_numpy(train.observed), 3)
    preprocessing = preprocess.fit(train.images, "normalise")
    images = preprocess.to_float(train.images)
    return replace(
        DistilledSet(images, labels, train.class_names, "random", 4, preprocessing, profile().student), **changes
    )


def test_selection_rules_pick_what_they_say():
    assert select([FIRST, LAST], "last") == [0.2, 0.4]
    assert select([FIRST, LAST], "validation") == [
        0.5,
        0.9,
    ]  # best mean validation accuracy, first checkpoint, first point
    assert select([FIRST, LAST], "best_on_test") == [0.6, 0.9]  # each student at its own best


def test_validation_selection_never_looks_at_the_test_set():
    flipped = replace(FIRST, test=[[1 - score for score in student] for student in FIRST.test])
    assert select([flipped], "validation") == [0.5, pytest.approx(0.1)]


def test_students_are_reproducible_and_independent_of_how_many_there_are():
    test = image_set(per_class=20, seed=1)
    three = evaluation.evaluate(small_set(), test, repeats=3, device="cpu")
    assert len(three.accuracies) == 3
    assert three.accuracies == evaluation.evaluate(small_set(), test, repeats=3, device="cpu").accuracies
    two = evaluation.evaluate(small_set(), test, repeats=2, device="cpu")
    assert three.accuracies[:2] == pytest.approx(two.accuracies, abs=0.02)
    assert three.mean == pytest.approx(sum(three.accuracies) / 3)
    assert three.std == pytest.approx(torch.tensor(three.accuracies).std().item())


def test_the_confusion_of_trained_students_counts_every_test_image_once_per_student():
    test = image_set(per_class=20, seed=1)
    scores = evaluation.evaluate(small_set(), test, repeats=2, device="cpu")
    confusion = torch.tensor(scores.curves.confusion)
    assert confusion.sum(1).tolist() == [40, 40, 40]
    assert confusion.diagonal().sum() / confusion.sum() == pytest.approx(scores.mean)


def test_augmentation_can_be_switched_off():
    test = image_set(per_class=20, seed=1)
    protocol = profile().student
    eager = small_set(protocol=replace(protocol, recipe=replace(protocol.recipe, lr=0.3)))
    published, none = (
        evaluation.evaluate(eager, test, 1, augmentation=name, device="cpu") for name in ("published", "none")
    )
    assert published.curves.epochs == none.curves.epochs
    assert published.curves.test != none.curves.test


def test_soft_labels_are_used_as_they_are():
    hard = small_set()
    soft = replace(hard, labels=0.6 * hard.labels + 0.4 * hard.labels.roll(1, 1))
    plain = replace(
        hard.protocol, recipe=replace(hard.protocol.recipe, augmentation="", cutmix=0.0, epochs=40, lr=0.05)
    )
    images, labels = soft.training_set()
    stack = training.initialise(lambda: plain.architecture.build(3, 8, 3), [0], torch.device("cpu"))
    training.train(stack, images, labels, plain.recipe, [0])
    probabilities = training.predict(stack, images)[0].softmax(1)
    assert (probabilities * hard.labels).sum(1).mean().item() == pytest.approx(0.6, abs=0.1)
    assert (probabilities * hard.labels.roll(1, 1)).sum(1).mean().item() == pytest.approx(0.4, abs=0.1)


def test_a_distilled_set_survives_the_disk(tmp_path):
    for kind in ("normalise", "zca"):
        whole = small_set(preprocessing=preprocess.fit(image_set().images, kind), meta={"wrong_labels": 3})
        whole.save(tmp_path / "set.safetensors")
        again = DistilledSet.load(tmp_path / "set.safetensors")
        assert again.protocol == whole.protocol
        assert again.preprocessing.hash == whole.preprocessing.hash
        assert (again.class_names, again.meta, again.ipc) == (whole.class_names, whole.meta, whole.ipc)
        assert torch.equal(again.images, whole.images)
        assert torch.equal(again.training_set()[0], whole.training_set()[0])


def test_images_in_the_space_of_the_preprocessing_are_trained_on_as_they_are(tmp_path):
    pixels = small_set(preprocessing=preprocess.fit(image_set().images, "zca"))
    whitened = replace(pixels, images=pixels.preprocessing.apply(pixels.images), preprocessed=True)
    whitened.save(tmp_path / "set.safetensors")
    again = DistilledSet.load(tmp_path / "set.safetensors")
    assert again.preprocessed
    for mine, theirs in zip(again.training_set(), pixels.training_set(), strict=True):
        assert torch.equal(mine, theirs)
    torch.testing.assert_close(again.pictures(), pixels.pictures(), atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="space"):
        concatenate([pixels, whitened])


@pytest.mark.parametrize("method", ["random", "datm"])
def test_students_that_diverge_in_their_last_step_have_no_accuracy(method):
    """The rate is that of a recipe, or one that DATM learned: its only loss is that of the fresh networks."""
    one_step = training.Recipe(epochs=1, batch_size=64, lr=1e20)
    small = small_set(method=method, protocol=replace(profile().student, recipe=one_step))
    with pytest.raises(training.NotFinite, match="logits of network 1, 2 of 2 are not finite"):
        evaluation.evaluate(small, image_set(seed=1), repeats=2, device="cpu")


def test_a_damaged_distilled_set_is_refused(tmp_path):
    path = tmp_path / "set.safetensors"
    small_set().save(path)
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(DamagedError, match="does not match its checksum"):
        DistilledSet.load(path)


def test_distilled_sets_with_different_preprocessing_refuse_to_be_joined():
    assert len(concatenate([small_set(), small_set()])) == 24
    other = small_set(preprocessing=preprocess.fit(image_set(seed=9).images, "normalise"))
    with pytest.raises(InputError, match="cannot be mixed"):
        concatenate([small_set(), other])
    with pytest.raises(InputError, match="multi-formation factor and kind of labels agree"):
        concatenate([small_set(), small_set(factor=2)])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"repeats": 0}, "at least 1"),
        ({"repeats": True}, "whole number"),
        ({"augmentation": "yes"}, "published or none"),
        ({"device": "gpu9"}, "allowed are auto, cpu"),
        ({"test": image_set(classes=4)}, "same classes"),
    ],
)
def test_bad_arguments_are_refused_before_any_training(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        evaluation.evaluate(small_set(), **({"test": image_set()} | arguments))


@pytest.mark.parametrize("name", ["meta", "gpu", "", "cuda:99"])
def test_a_device_that_cannot_compute_here_is_refused(name):
    with pytest.raises(InputError, match="cannot be used here"):
        evaluation.choose_device(name)
