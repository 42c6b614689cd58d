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
    kept = DistilledSet.load(tmp_path / "artefacts" / f"{record['parents']['set']}.safetensors")
    final, initial = study.distilled(cell, tmp_path), study.initial(cell, tmp_path)
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


def test_a_damaged_set_is_set_aside_and_never_used(cell, record, tmp_path):
    path = store.Store(tmp_path).artefact_path(record["parents"]["set"])
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with (
        pytest.warns(UserWarning, match="does not match its checksum"),
        pytest.raises(InputError, match="but not its distilled set"),
    ):
        study.distilled(cell, tmp_path)
    assert not path.exists()
    assert [kept.read_bytes() for kept in (tmp_path / "damaged").iterdir()] == [content]
