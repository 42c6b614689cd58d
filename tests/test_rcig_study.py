"""RCIG as a method of a study: its preprocessing, its students, its settings, and what its cells record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import image_set, profile
from test_study import STEPS, slow, write_small_archive

import ddlnl
from ddlnl import (
    cells,
    datasets,
    evaluation,
    methods,
    preprocess,
    rcig_evaluation,
    rcig_runs,
    rcig_settings,
    store,
    study,
)
from ddlnl.cells import Cell
from ddlnl.curves import Curves
from ddlnl.distilled import DistilledSet, concatenate
from ddlnl.errors import InputError
from ddlnl.preprocess import Preprocessing
from ddlnl.profiles import PROFILES


@pytest.fixture
def cell(tmp_path, monkeypatch):
    monkeypatch.setitem(PROFILES, "demo", profile())
    cells._load.cache_clear()
    cells._prepared.cache_clear()
    return Cell(write_small_archive(tmp_path), "symmetric:0.5", "rcig", 2, 0, "demo")


@pytest.fixture
def record(cell, tmp_path):
    return study.run([cell], tmp_path, device="cpu", progress=False).iloc[0]


def test_a_cell_evaluates_its_initial_and_its_final_set_in_the_space_of_its_own_whitening(cell, record, tmp_path):
    assert record["checkpoints"] == ["iteration-0", "iteration-2", "iteration-4"]
    assert len(record["curves"]) == 3
    final, initial = study.distilled(cell, tmp_path), study.initial(cell, tmp_path)
    assert final.preprocessed
    assert final.preprocessing.kind == "zca-relative"
    train = cells.prepare(cell).train
    whole = datasets.load(cell.dataset).train
    fitted = preprocess.fit(whole.images, "zca-relative", whole.name)
    assert final.preprocessing.hash == initial.preprocessing.hash == fitted.hash == record["preprocessing_hash"]
    rows = {row.tobytes() for row in (train.images / np.float32(255)).transpose(0, 3, 1, 2).round(2)}
    assert {row.tobytes() for row in initial.pictures().numpy().round(2)} <= rows
    torch.testing.assert_close(initial.labels.sum(1), torch.zeros(6), atol=1e-6, rtol=0)
    assert initial.labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    assert not torch.equal(final.labels, initial.labels)


def test_the_result_is_the_average_of_the_run_and_the_temperature_is_recorded(cell, tmp_path, monkeypatch):
    products = []
    product = methods.rcig.Rcig.product
    monkeypatch.setattr(methods.rcig.Rcig, "product", lambda run: products.append(product(run)) or products[-1])
    record = study.run([cell], tmp_path, device="cpu", progress=False).iloc[0]
    final = study.distilled(cell, tmp_path)
    assert torch.equal(final.images, products[-1]["images"])
    assert torch.equal(final.labels, products[-1]["labels"])
    assert record["notes"]["log_temperature"] == pytest.approx(float(products[-1]["log_temperature"]))


def test_the_run_without_augmentation_is_recorded_beside_the_other_one(cell, record, tmp_path):
    final = study.distilled(cell, tmp_path)
    data = cells.prepare(cell)
    for augmentation, found in (("published", record), ("none", record["notes"])):
        scores = evaluation.evaluate(final, data.test, repeats=2, augmentation=augmentation, seed=0, device="cpu")
        name = {"published": "last", "none": "without_augmentation"}[augmentation]
        assert found[f"accuracies_{name}"] == scores.accuracies
        assert found[f"accuracy_{name}"] == pytest.approx(scores.mean)
    steps = [scores.curves.epochs[-1] for scores in (scores,)]
    assert steps == [PROFILES["demo"].rcig.student.steps * 5 // 2]


def test_the_second_run_of_the_students_is_no_part_of_the_seconds_that_training_or_distilling_took(
    cell, tmp_path, monkeypatch
):
    slow(monkeypatch, 1000, rcig_evaluation._Students, "step")
    row = study.run([cell], tmp_path, device="cpu", progress=False).iloc[0]
    assert row["seconds_evaluate"] // 1000 == 3 * 8  # three checkpoints, 8 steps each
    assert row["seconds_beside"] // 1000 == 20  # 5/2 as many steps
    assert row["seconds_distil"] < 1000
    assert row["seconds"] == pytest.approx(row[STEPS].sum())


def blow_up(monkeypatch, iteration):
    """Let the set of the checkpoint at `iteration` be one that no student learns from."""
    product = methods.rcig.Rcig.product

    def too_large(run):
        found = product(run)
        return found | {"images": found["images"] * 1e30} if run.count == iteration else found

    monkeypatch.setattr(methods.rcig.Rcig, "product", too_large)


def test_a_checkpoint_whose_students_diverge_is_recorded_as_such_and_no_rule_chooses_it(cell, tmp_path, monkeypatch):
    blow_up(monkeypatch, 2)
    with pytest.warns(UserWarning, match=r"iteration-2 counts as diverged\. The weights of RCIG's students"):
        table = study.run([cell], tmp_path, device="cpu", progress=False)
    record = table.iloc[0]
    assert record["checkpoints"] == ["iteration-0", "iteration-2", "iteration-4"]
    assert [curves is None for curves in record["curves"]] == [False, True, False]
    assert record["diverged"] == ["iteration-2"]
    others = [Curves(**curves) for curves in record["curves"] if curves]
    for rule in evaluation.RULES:
        assert record[f"accuracies_{rule}"] == evaluation.select(others, rule)


def test_a_final_set_whose_students_diverge_stops_the_cell(cell, tmp_path, monkeypatch):
    blow_up(monkeypatch, 4)
    with pytest.raises(RuntimeError, match="students are not finite after step 8"):
        study.run([cell], tmp_path, device="cpu", progress=False)
    assert store.table(tmp_path).empty


def test_a_set_with_free_labels_is_written_and_read_with_its_protocol(cell, record, tmp_path):
    final = study.distilled(cell, tmp_path)
    final.save(tmp_path / "own.safetensors")
    again = DistilledSet.load(tmp_path / "own.safetensors")
    assert again.free_labels
    assert again.protocol == final.protocol
    assert isinstance(again.protocol, rcig_evaluation.Protocol)
    assert torch.equal(again.training_set()[0], final.training_set()[0])
    test = cells.prepare(cell).test
    ours, theirs = (evaluation.evaluate(one, test, repeats=1, device="cpu").accuracies for one in (final, again))
    assert ours == theirs


def test_free_labels_and_probabilities_are_never_joined(cell, record, tmp_path):
    final = study.distilled(cell, tmp_path)
    other = DistilledSet(**vars(final) | {"protocol": PROFILES["demo"].student})
    assert len(concatenate([final, final])) == 2 * len(final)
    with pytest.raises(InputError, match="kind of labels agree"):
        concatenate([final, other])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_preprocessing_is_rebuilt_from_its_kind_and_tensors(channels):
    fitted = preprocess.fit(image_set(channels=channels).images, "zca-relative")
    again = Preprocessing.of("zca-relative", fitted.tensors())
    assert again.kind == {1: "normalise", 3: "zca-relative"}[channels]
    assert again.hash == fitted.hash


def test_the_paper_profile_runs_the_published_settings_and_protocol_whatever_the_noise():
    for name in ("paper", "paper-uniform"):
        plan = PROFILES[name].for_dataset("cifar10", 32).rcig
        for noise in ("clean", "symmetric:0.4", "human:worst", "asymmetric:0.8"):
            assert plan.settings_for("cifar10", noise, 10) == rcig_settings.published("cifar10", noise, 10)
            assert plan.settings_for("cifar10", noise, 10) == plan.settings_for("cifar10", "clean", 10)
        assert plan.student_for("cifar10", 10) == rcig_evaluation.published_protocol("cifar10", 10)
        with pytest.raises(InputError, match="no published settings for the dataset 'digits'"):
            plan.settings_for("digits", "clean", 1)


@pytest.mark.parametrize("name", ["demo", "laptop"])
def test_reduced_profiles_fit_networks_to_the_images_and_never_mirror_digits(name):
    for dataset, size, depth, mirror in (("digits", 8, 2, False), ("cifar10", 32, 3, True)):
        plan = PROFILES[name].for_dataset(dataset, size).rcig
        settings, student = plan.settings_for(dataset, "clean", 1), plan.student_for(dataset, 1)
        assert (settings.depth, settings.mirror) == (student.depth, student.mirror) == (depth, mirror)
        assert "flip" not in student.augmentation or mirror


def test_a_dataset_without_published_settings_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(study.engines, "run_cell", lambda *_: pytest.fail("work was started"))
    with pytest.raises(InputError, match="RCIG has no published settings for the dataset 'digits'"):
        study.run([Cell("digits", "clean", "rcig", 1, 0, "paper")], tmp_path, device="cpu", progress=False)
    with pytest.raises(InputError, match="RCIG has no published settings for the dataset 'digits'"):
        ddlnl.distill(datasets.load("digits").train, method="rcig", ipc=1, profile="paper", device="cpu")


def test_distil_in_memory_gives_the_set_of_the_cell(cell, record, tmp_path):
    data = cells.prepare(cell)
    whole = datasets.load(cell.dataset).train
    small = ddlnl.distill(data.train, method="rcig", ipc=2, profile="demo", seed=0, device="cpu")
    assert small.method == "rcig"
    assert small.free_labels
    assert small.meta["wrong_labels"] == record["notes"]["wrong_labels"]
    assert len(whole) > len(data.train)  # so its whitening, and with it the set, is not quite that of the cell
    torch.testing.assert_close(small.labels, study.distilled(cell, tmp_path).labels, atol=0.2, rtol=0)


def test_both_runs_of_a_table_stand_side_by_side_and_other_methods_are_left_out(cell, tmp_path, monkeypatch):
    grid = [cell, replace(cell, seed=1), replace(cell, method="random")]
    table = study.run(grid, tmp_path, device="cpu", progress=False)
    (row,) = rcig_runs.runs(table).to_dict("records")
    assert (row["noise"], row["ipc"], row["seeds"]) == ("symmetric:0.5", 2, 2)
    mine = table[table["method"] == "rcig"]
    assert row["augmented"] == pytest.approx(100 * mine["accuracy_last"].mean())
    other = [notes["accuracy_without_augmentation"] for notes in mine["notes"]]
    assert row["not_augmented"] == pytest.approx(100 * np.mean(other))
    shown = []
    monkeypatch.setattr(rcig_runs, "display", lambda data, raw: shown.append(data["text/plain"]))
    rcig_runs.show(table[table["method"] == "random"])
    assert shown == ["RCIG was not among the methods of this run."]
