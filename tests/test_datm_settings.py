"""All 136 published settings of DATM are there, with the values that were published."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace

import pytest
from small import image_set

import ddlnl
from ddlnl import datm_settings, trajectories
from ddlnl.datm_settings import Settings, published
from ddlnl.errors import InputError
from ddlnl.profiles import PROFILES


def test_the_table_has_every_published_file():
    rows = datm_settings.table()
    assert len(rows) == 136
    assert Counter(row["source"] for row in rows) == {"datm": 12, "study": 124}
    study = Counter((row["dataset"], row["noise"].split(":")[0]) for row in rows if row["source"] == "study")
    assert study == {
        ("cifar10", "clean"): 5,
        ("cifar10", "symmetric"): 20,
        ("cifar10", "asymmetric"): 20,
        ("cifar10", "human"): 25,
        ("cifar100", "clean"): 4,
        ("cifar100", "symmetric"): 16,
        ("cifar100", "asymmetric"): 16,
        ("cifar100", "human"): 3,
        ("tiny_imagenet", "clean"): 3,
        ("tiny_imagenet", "symmetric"): 12,
    }


def test_clean_settings_of_the_study_are_those_of_the_method():
    def of(source):
        rows = [row for row in datm_settings.table() if row["source"] == source and row["noise"] == "clean"]
        return {(row["dataset"], row["ipc"]): row | {"source": ""} for row in rows}

    assert of("study") == of("datm")


def test_published_values_are_read_as_they_stand():
    assert published("cifar10", "clean", 10) == Settings()
    one = published("cifar10", "clean", 1)
    assert (one.lr_images, one.lr_step, one.lr_labels, one.threshold) == (100.0, 1e-7, 5.0, 1.1)
    assert (one.steps, one.target_epochs, one.batch, one.step_size, one.max_start) == (80, 2, 10, 0.01, 4)
    assert published("cifar10", "symmetric:0.4", 10).step_size == 0.001
    assert published("cifar10", "symmetric:0.8", 1000).iterations == 6000
    assert published("cifar10", "symmetric:0.8", 1000).initialisation == "real"
    assert published("cifar100", "human:noisy_fine", 50).lr_images == 1000.0
    assert published("tiny_imagenet", "symmetric:0.2", 50).expansion is None


def test_one_setting_for_all_conditions_is_that_of_clean_labels():
    noisy = published("cifar10", "symmetric:0.8", 10, per_condition=False)
    assert noisy == published("cifar10", "clean", 10)
    assert noisy != published("cifar10", "symmetric:0.8", 10)
    uniform = PROFILES["paper-uniform"].datm.settings_for("cifar10", "asymmetric:0.8", 50)
    assert uniform == published("cifar10", "clean", 50)
    assert PROFILES["paper"].datm.settings_for("cifar10", "asymmetric:0.8", 50).lr_step == 1e-6


def test_the_gradient_of_the_noisy_label_study_is_a_profile():
    exact, tesla = (PROFILES[name].datm.settings_for("cifar10", "clean", 10) for name in ("paper", "paper-tesla"))
    assert (exact.gradient, tesla.gradient) == ("exact", "tesla")
    assert exact == replace(tesla, gradient="exact")


def test_a_noise_nobody_published_gets_the_clean_settings():
    assert published("cifar10", "asymmetric:0.3", 50) == published("cifar10", "clean", 50)


@pytest.mark.parametrize(("dataset", "ipc"), [("digits", 1), ("cifar10", 5), ("tiny_imagenet", 100)])
def test_what_was_never_published_is_refused_with_what_is(dataset, ipc):
    with pytest.raises(InputError, match=r"cifar10|1, 10, 50"):
        published(dataset, "clean", ipc)


def test_distilling_what_was_never_published_is_refused_before_any_expert(monkeypatch):
    monkeypatch.setattr(trajectories, "train", lambda *_: pytest.fail("experts were trained"))
    for images, ipc in ((image_set(), 1), (replace(image_set(), name="cifar10"), 7)):
        with pytest.raises(InputError, match="no published settings"):
            ddlnl.distill(images, "datm", ipc=ipc, profile="paper", device="cpu")


def test_the_window_of_start_epochs_grows_as_published():
    ten, one = published("cifar10", "clean", 10), published("cifar10", "clean", 1)
    assert [ten.start_end(iteration) for iteration in (0, 500, 999, 1000, 5000)] == [10, 15, 19, 20, 20]
    assert {one.start_end(iteration) for iteration in (0, 5000)} == {4}
    assert ten.window == range(22)


def test_the_paper_profile_keeps_every_epoch_that_its_settings_touch():
    kept = PROFILES["paper"].datm.kept_epochs
    assert (kept("cifar10"), kept("cifar100"), kept("tiny_imagenet")) == (range(62), range(72), range(72))


def test_the_settings_of_a_profile_are_those_of_the_largest_size_not_above():
    plan = PROFILES["laptop"].datm
    for ipc in (1, 5, 10, 50):
        expected = max((size, index) for index, (size, _) in enumerate(plan.settings) if size <= ipc)[1]
        assert plan.settings_for("cifar10", "clean", ipc) == plan.settings[expected][1]


@pytest.mark.parametrize(
    "change",
    [{"initialisation": "spc"}, {"max_start": 0}, {"first_max_start": 30}, {"min_start": -1}, {"gradient": "fast"}],
)
def test_settings_that_cannot_be_are_refused(change):
    with pytest.raises(InputError):
        Settings(**asdict(Settings()) | change)
