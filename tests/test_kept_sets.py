"""Distilled sets of finished cells can be read again, whole or not at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import profile
from test_study import write_small_archive

from ddlnl import cells, labels, store, study
from ddlnl.cells import Cell
from ddlnl.distilled import DistilledSet
from ddlnl.errors import InputError
from ddlnl.profiles import PROFILES


@pytest.fixture
def cell(tmp_path, monkeypatch):
    monkeypatch.setitem(PROFILES, "demo", profile())
    cells._load.cache_clear()
    cells._prepared.cache_clear()
    return Cell(write_small_archive(tmp_path), "symmetric:0.5", "datm", 2, 0, "demo")


@pytest.fixture
def record(cell, tmp_path):
    return study.run([cell], tmp_path, device="cpu", progress=False).iloc[0]


def test_a_finished_cell_gives_the_set_it_made_and_the_one_it_began_as(cell, record, tmp_path):
    final, initial = study.distilled(cell, tmp_path), study.initial(cell, tmp_path)
    final.save(tmp_path / "own.safetensors")
    kept = DistilledSet.load(tmp_path / "own.safetensors")
    for name in ("images", "labels"):
        assert torch.equal(getattr(final, name), getattr(kept, name))
        assert not torch.equal(getattr(final, name), getattr(initial, name))
    assert (final.protocol, final.meta, final.class_names) == (kept.protocol, kept.meta, kept.class_names)
    train = cells.prepare(cell).train
    rows = {row.tobytes() for row in (train.images / np.float32(255)).transpose(0, 3, 1, 2).round(2)}
    assert {row.tobytes() for row in initial.pictures().numpy().round(2)} <= rows


def test_an_outcome_holds_the_noise_of_the_images_that_the_cell_trained_on(cell, record, tmp_path):
    (found,) = labels.outcomes([cell], tmp_path)
    assert found.confusion.sum() == record["train_images"]
    assert found.realised_rate == pytest.approx(record["realised_rate"])
    assert torch.equal(found.small.labels, study.distilled(cell, tmp_path).labels)
    assert torch.equal(found.initial.labels, study.initial(cell, tmp_path).labels)


def test_without_a_set_a_sentence_says_what_to_run(cell, record, tmp_path):
    with pytest.raises(InputError, match=r"IPC 2, seed 1\) has not finished in the store .*; run it with study.run"):
        study.distilled(Cell(cell.dataset, cell.noise, "datm", 2, 1, "demo"), tmp_path)
    with pytest.raises(InputError, match="trains on all images"):
        study.distilled(Cell(cell.dataset, cell.noise, "full", 0, 0, "demo"), tmp_path)
    key = cells.cell_key(cell)
    (tmp_path / "artefacts" / f"{key}-set.safetensors").unlink()
    (tmp_path / "artefacts" / f"{key}-initial.safetensors").unlink()
    with pytest.raises(InputError, match=r"has the record of the cell .* but not its distilled set; move the record"):
        study.distilled(cell, tmp_path)
    assert study.initial(cell, tmp_path) is None
    (tmp_path / "records" / "cell" / f"{key}.json").rename(tmp_path / "away.json")
    study.run([cell], tmp_path, device="cpu", progress=False)
    assert len(study.distilled(cell, tmp_path)) == len(study.initial(cell, tmp_path)) == 6


def test_a_damaged_set_is_named_and_never_used_and_set_aside_when_the_cell_runs_again(cell, record, tmp_path):
    path = store.Store(tmp_path).artefact_path(record["parents"]["set"])
    whole = path.read_bytes()
    content = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes(content)
    with (
        pytest.warns(UserWarning, match="does not match its checksum"),
        pytest.raises(InputError, match="but not its distilled set; move the record"),
    ):
        study.distilled(cell, tmp_path)
    assert path.read_bytes() == content
    store.Store(tmp_path).record_path("cell", record["key"]).unlink()
    with pytest.warns(UserWarning, match="It was moved to"):
        study.run([cell], tmp_path, device="cpu", progress=False)
    assert path.read_bytes() == whole
    assert [kept.read_bytes() for kept in (tmp_path / "damaged").iterdir()] == [content]


def test_a_store_keeps_the_preprocessing_of_many_sets_once(tmp_path, monkeypatch):
    """The matrices of digits are 64x64; of CIFAR-10 they take 75 MB."""
    monkeypatch.setitem(PROFILES, "demo", profile())
    cell = Cell("digits", "symmetric:0.4", "datm", 1, 0, "demo")
    record = study.run([cell], tmp_path, device="cpu", progress=False).iloc[0]
    final = study.distilled(cell, tmp_path)
    matrices = 4 * (final.preprocessing.whiten.numel() + final.preprocessing.unwhiten.numel())
    for name in (record["parents"]["set"], cells.initial_key(record["key"])):
        assert store.Store(tmp_path).artefact_path(name).stat().st_size < matrices
    final.save(tmp_path / "own.safetensors")
    assert (tmp_path / "own.safetensors").stat().st_size > matrices
    for one, other in zip(
        final.training_set(), DistilledSet.load(tmp_path / "own.safetensors").training_set(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_file_of_a_store_is_not_taken_for_a_set_of_its_own(cell, record, tmp_path):
    with pytest.raises(InputError, match=r"holds no preprocessing; a set of a store is read with study\.distilled"):
        DistilledSet.load(store.Store(tmp_path).artefact_path(record["parents"]["set"]))


def test_a_set_whose_preprocessing_is_lost_counts_as_missing(cell, record, tmp_path):
    meta = store.Store(tmp_path).tensors(record["parents"]["set"])[1]
    store.Store(tmp_path).artefact_path(meta["fitted"]).unlink()
    with pytest.raises(InputError, match="but not its distilled set"):
        study.distilled(cell, tmp_path)
    assert study.initial(cell, tmp_path) is None
