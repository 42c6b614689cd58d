"""Membership inference on finished cells: who the members are, what is attacked, and what is kept."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from scipy import stats
from small import NETWORK, image_set
from test_study import archive_path as archive_path

from ddlnl import claims, evaluation, export, membership, noise, preprocess, privacy, store, study, training
from ddlnl.errors import InputError
from ddlnl.training import Protocol, Recipe


def data(spec: str, imbalance: str = "none") -> SimpleNamespace:
    train = noise.corrupt(noise.imbalance(image_set(per_class=60), imbalance), spec, seed=1)
    return SimpleNamespace(train=train, validation=train.subset(np.arange(20)), test=image_set(per_class=40, seed=1))


def test_held_out_test_images_get_the_noise_of_the_members_and_not_their_draw():
    validation, test = membership.held_out(data("symmetric:0.5"), "none", 1)
    assert len(validation) == 20
    assert noise.realised_rate(test) == pytest.approx(0.5, abs=0.15)
    again = membership.held_out(data("symmetric:0.5"), "none", 1)[1]
    np.testing.assert_array_equal(again.observed, test.observed)
    assert (membership.held_out(data("symmetric:0.5"), "none", 2)[1].observed != test.observed).any()


@pytest.mark.parametrize(("spec", "imbalance"), [("instance:0.4", "none"), ("symmetric:0.4", "longtail:3")])
def test_test_images_are_left_out_where_their_labels_or_classes_would_give_them_away(spec, imbalance):
    assert len(membership.held_out(data(spec, imbalance), imbalance, 0)) == 1


def test_the_student_that_is_attacked_is_the_first_of_the_evaluation():
    whole = image_set(per_class=20)
    images = preprocess.fit(whole.images, "normalise").apply(preprocess.to_float(whole.images))
    labels = torch.from_numpy(whole.clean)
    protocol = Protocol(NETWORK, Recipe(epochs=2, augmentation="color_crop", cutmix=0.5), test_points=1)
    seeds = evaluation.student_seeds(0, 2)
    targets = training.one_hot(labels, 3)
    curves = evaluation.train_students(images, targets, protocol, {"test": (images, labels)}, seeds)
    stack = evaluation.trained(images, targets, protocol, seeds[:1])
    assert (training.predict(stack, images).argmax(2) == labels).double().mean().item() == curves.test[0][-1]


def test_cells_are_attacked_once_and_rates_that_too_few_images_cannot_show_are_left_open(
    archive_path, tmp_path, monkeypatch
):
    place = tmp_path / "store"
    methods = ["dance", "rcig", "full", "gce"]
    grid = study.grid(archive_path, rates=0.5, methods=methods, ipcs=[2], seeds=2)
    study.run(grid, place, device="cpu", progress=False)
    before = store.table(place)
    found = membership.run(grid, place, device="cpu", progress=False)
    assert store.table(place).to_dict("records") == before.to_dict("records")
    of_seed = [
        ("dance", membership.LOSS),
        ("dance", membership.NEARNESS),
        ("rcig", membership.NEARNESS),
        ("full", membership.LOSS),
    ]
    assert list(zip(found["method"], found["attack"], strict=True)) == 2 * of_seed
    train = before["train_images"].iloc[0]
    assert found["members"].eq(train).all()
    assert found["others"].eq(42 - train + 42).all()
    assert found["auc"].between(0, 1).all()
    for rate in privacy.RATES:
        assert found[f"tpr_{rate:g}"].isna().all()
    assert "too few others" in membership.readable(found)
    assert set(claims.privacy(found)["method"]) == {"dance", "rcig"}
    assert claims.privacy(found)["n"].eq(2).all()
    assert "8 cells and 6 records computed from them" in export.provenance([before, found], place).data
    monkeypatch.setattr(membership, "_record", lambda *_: pytest.fail("a finished attack was repeated"))
    assert membership.run(grid, place, device="cpu", progress=False).equals(found)


def reached(seeds: int) -> pd.DataFrame:
    """An attack on one condition as `run` finds it."""
    seed = np.arange(seeds)
    rows = {"dataset": "digits", "noise": "clean", "method": "dance", "ipc": 10, "attack": membership.LOSS}
    rows |= {"seed": seed, "members": 100, "others": 100, "auc": 0.5 + 0.01 * seed**2}
    rows |= {"auc_low": 0.4, "auc_high": 0.6 + 0.01 * seed, "tpr_0.01": 0.02 + 0.01 * seed}
    return pd.DataFrame(rows | {"tpr_0.01_low": 0.01, "tpr_0.01_high": 0.03, "tpr_0.001": None}).assign(
        **{"tpr_0.001_low": None, "tpr_0.001_high": None}
    )


def tables(page: str) -> list[pd.DataFrame]:
    found = []
    for table in BeautifulSoup(page, "html.parser").find_all("table"):
        head, *rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]
        found.append(pd.DataFrame(rows, columns=head))
    return found


def test_intervals_are_those_of_the_bootstrap_for_one_seed_and_t_intervals_over_several():
    (one,) = tables(membership.readable(reached(1)))
    assert one["AUC"].item() == "0.500 [0.400, 0.600]"
    assert one["found at 1.0% false alarms"].item() == "2.0% [1.0%, 3.0%]"
    assert one["found at 0.1% false alarms"].item() == "too few others"
    many, each = tables(membership.readable(reached(3)))
    low, high = stats.t.interval(0.95, 2, np.mean([0.5, 0.51, 0.54]), stats.sem([0.5, 0.51, 0.54]))
    assert many["AUC"].item() == f"0.517 [{low:.3f}, {high:.3f}]"
    assert many["seeds"].item() == "3"
    assert each["AUC"].tolist() == ["0.500 [0.400, 0.600]", "0.510 [0.400, 0.610]", "0.540 [0.400, 0.620]"]


def test_a_set_of_real_images_gives_its_members_away(archive_path, tmp_path):
    place = tmp_path / "store"
    grid = study.grid(archive_path, rates=0.0, methods="random", ipcs=[8], seeds=1)
    study.run(grid, place, device="cpu", progress=False)
    found = membership.run(grid, place, device="cpu", progress=False).set_index("attack")
    assert found.loc[membership.NEARNESS, "auc_low"] > 0.6  # 24 of 38 members were released as they are
    with pytest.raises(InputError, match="has not finished in the store"):
        membership.run(grid, tmp_path / "empty", device="cpu", progress=False)
