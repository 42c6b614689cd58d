"""Denoising a reader's images: labels are judged by students that never saw them, and everything found is written."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from image_sets import refusal
from small import profile

import ddlnl
from ddlnl import datasets, denoising, evaluation, methods, noise, profiles
from ddlnl.datasets import Dataset, ImageSet
from ddlnl.distilled import DistilledSet
from ddlnl.training import Protocol, Recipe


@pytest.fixture(scope="module", autouse=True)
def short():
    """The demo profile of these tests: seconds, and yet students learn three digits."""
    small = profile()
    dance = replace(small.dance, expert_recipe=Recipe(epochs=6, batch_size=16, lr=0.05))
    students = Protocol(small.student.architecture, Recipe(epochs=40, batch_size=8, lr=0.05), test_points=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(profiles.PROFILES, "demo", replace(small, student=students, dance=dance))
        yield


def three_digits(part: ImageSet, count: int) -> ImageSet:
    few = part.subset(np.flatnonzero(part.clean < 3)[:count])
    return replace(few, class_names=("class 0", "class 1", "class 2"))


@pytest.fixture(scope="module")
def noisy():
    return noise.corrupt(three_digits(datasets.load("digits").train, 120), "symmetric:0.2", seed=1)


@pytest.fixture(scope="module")
def report(short, noisy):
    return ddlnl.denoise(Dataset(noisy, three_digits(datasets.load("digits").test, 30)), ipc=10)


def test_suspected_labels_are_wrong_far_more_often_than_labels_are(report, noisy):
    """A modest promise: there are 120 images, and networks of width 8."""
    found = report.against(noisy.clean)
    assert found["wrong_before"] == noise.realised_rate(noisy)
    assert found["precision"] > 2 * found["wrong_before"]
    assert found["recall"] > 0.4
    assert min(report.accuracies) > 0.5


def test_the_result_is_one_set_of_the_halves_with_the_images_of_a_class_together(report):
    assert report.small.ipc == 10
    assert report.small.labels.argmax(1).tolist() == [0] * 10 + [1] * 10 + [2] * 10


def test_sets_of_different_sizes_are_joined_class_by_class(report):
    classes, shape = 3, report.small.images.shape[1:]

    def made(ipc, start):
        images = (start + torch.arange(3.0 * ipc))[:, None, None, None].expand(-1, *shape)
        return replace(report.small, images=images, labels=torch.eye(classes).repeat_interleave(ipc, 0), ipc=ipc)

    joined = denoising.together([made(2, 0), made(1, 100)], 3)
    assert joined.images[:, 0, 0, 0].tolist() == [0, 1, 100, 2, 3, 101, 4, 5, 102]
    assert joined.labels.argmax(1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_no_image_is_judged_by_students_of_its_own_half(monkeypatch, noisy):
    made_from, judged = [], []
    distil, judge = methods.final_set, denoising.judge

    def follow_distil(task):
        made_from.append({image.tobytes() for image in task.train.images})
        return distil(task)

    def follow_judge(small, images, task):
        judged.append({image.tobytes() for image in images.images})
        return judge(small, images, task)

    monkeypatch.setattr(methods, "final_set", follow_distil)
    monkeypatch.setattr(denoising, "judge", follow_judge)
    ddlnl.denoise(noisy, method="random", ipc=2)
    assert all(not seen & asked for seen, asked in zip(made_from, judged, strict=True))
    assert len(judged[0] | judged[1]) == len(noisy)


def test_the_students_that_judge_are_those_of_an_evaluation_of_the_set(report, noisy):
    test, chosen = three_digits(datasets.load("digits").test, 30), profiles.PROFILES["demo"]
    task = methods.Task("dance", noisy, 10, chosen, report.small.preprocessing, 7, torch.device("cpu"))
    judged = denoising.judge(report.small, test, task).argmax(2) == test.clean
    scores = evaluation.evaluate(report.small, test, chosen.students, seed=7, device="cpu")
    assert judged.mean(1).tolist() == scores.accuracies


def test_halves_share_every_class_and_every_image_is_in_one(noisy):
    first, second = denoising.halves(noisy.observed, 0)
    assert sorted([*first, *second]) == list(range(len(noisy)))
    difference = np.bincount(noisy.observed[first]) - np.bincount(noisy.observed[second])
    assert set(difference.tolist()) <= {0, 1}
    assert not np.array_equal(first, denoising.halves(noisy.observed, 1)[0])


def test_clean_labels_play_no_part_and_a_second_run_finds_the_same(noisy):
    known, unknown = (ddlnl.denoise(one, "random", ipc=2) for one in (noisy, replace(noisy, clean=noisy.observed)))
    np.testing.assert_array_equal(known.found.posterior, unknown.found.posterior)
    assert torch.equal(known.small.images, unknown.small.images)
    assert unknown.accuracies == []


def test_datm_can_judge_too(noisy):
    found = ddlnl.denoise(noisy, method="datm", ipc=2)
    assert (found.small.method, found.small.ipc, len(found.small)) == ("datm", 2, 6)


def test_tables_name_images_and_labels_and_agree(report, noisy):
    suspects, labels = report.suspects, report.labels
    assert suspects["score"].is_monotonic_decreasing
    assert (suspects["given"] != suspects["suggested"]).all()
    assert len(labels) == len(noisy)
    changed = labels[labels["given"] != labels["corrected"]]
    assert sorted(changed["index"]) == sorted(suspects["index"])
    by_index = labels.set_index("index").loc[suspects["index"]]
    assert by_index["corrected"].tolist() == suspects["suggested"].tolist()
    np.testing.assert_allclose(report.transition.to_numpy(), report.found.transition)
    assert report.transition.index.tolist() == list(noisy.class_names)


def test_what_was_found_is_written_and_can_be_read_again(report, tmp_path):
    paths = report.save(tmp_path / "out")
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "out").iterdir()}
    assert len(pd.read_csv(tmp_path / "out" / "labels.csv")) == len(report.labels)
    suspects = pd.read_csv(tmp_path / "out" / "suspects.csv")
    assert suspects["index"].tolist() == report.found.suspected.tolist()
    small = DistilledSet.load(tmp_path / "out" / "distilled.safetensors")
    assert torch.equal(small.images, report.small.images)
    facts = json.loads((tmp_path / "out" / "report.json").read_text())
    assert facts["summary"] == report.summary()
    assert facts["settings"]["ipc"] == 10


def test_the_summary_counts_suspects_and_names_the_accuracy(report):
    text = " ".join(report.summary())
    assert f"{len(report.found.suspected)} of 120 labels" in text
    assert f"{100 * np.mean(report.accuracies):.1f} % on the 30 test images" in text


def test_what_cannot_be_denoised_is_refused_before_any_work(noisy):
    def call(**changes):
        return refusal(lambda: ddlnl.denoise(**{"data": noisy, "ipc": 2} | changes))

    assert "Did you mean 'dance'" in call(method="dancer")
    assert "'full' is unknown" in call(method="full")
    assert "a whole number from 2 to" in call(ipc=1)
    assert "each half of the images gives half of it" in call(ipc=400)
    assert "must be square" in call(data=replace(noisy, images=noisy.images[:, :4]))
    one = noisy.subset(np.r_[np.flatnonzero(noisy.observed != 2), np.flatnonzero(noisy.observed == 2)[:1]])
    assert "The class 'class 2' has 1 training images, and every class needs at least 2." in call(data=one)
    assert "does not exist" in call(data="absent.npz")
