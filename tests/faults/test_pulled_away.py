"""What a study stands on is pulled away: its archive is replaced, its store moved, it is stopped with Ctrl-C."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_damage import same
from test_kills import SAVED
from test_study import archive_path as archive_path
from test_study import lasting

from ddlnl import cells, dance, datm, files, membership, store, study, training, transfer
from ddlnl.__main__ import main
from ddlnl.cells import Cell
from ddlnl.distilled import DistilledSet
from ddlnl.errors import InputError

ARCHIVE = "an archive replaced while a study runs gives no record of mixed data"
STORE = "a store moved away while a study runs costs time and nothing else"
STOPPED = "Ctrl-C at any moment leaves whole files and a study that goes on"


def at_call(patch: pytest.MonkeyPatch, owner: object, name: str, number: int, act) -> list[int]:
    """`act()` right before call `number` of a function, which is then in the list that is returned."""
    original, calls, acted = getattr(owner, name), itertools.count(), []

    def disturbed(*given, **options):
        if next(calls) == number:
            act()
            acted.append(number)
        return original(*given, **options)

    patch.setattr(owner, name, disturbed)
    return acted


def attempt(cell: Cell, place: Path) -> pd.DataFrame | Exception:
    try:
        return study.run([cell], place, device="cpu", progress=False)
    except (InputError, RuntimeError) as error:
        return error


# ---------------------------------------------------------------- the archive


def other_images(archive: str) -> None:
    """A new archive in the place of the old one, of its size and of its time: only the content differs."""
    path, before = Path(archive), Path(archive).stat()
    arrays = dict(np.load(path))
    np.savez(path.with_name("new.npz"), **arrays | {"train_images": 255 - arrays["train_images"]})
    os.utime(path.with_name("new.npz"), ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(path.with_name("new.npz"), path)


MOMENTS = [(cells, "prepare", 0), (cells, "cell_key", 0), (cells, "cell_key", 1), (cells.preprocess, "fit", 0)]
MOMENTS += [(study, "in_order", 0), (dance._Distillation, "iterate", 1)]


@pytest.mark.parametrize(("owner", "name", "number"), MOMENTS, ids=lambda one: getattr(one, "__name__", str(one)))
def test_an_archive_that_is_replaced_gives_the_record_of_the_old_one_or_none(
    archive_path, tmp_path, monkeypatch, tally, owner, name, number
):
    cell = Cell(archive_path, "symmetric:0.5", "dance", 2, 0, "demo")
    whole = study.run([cell], tmp_path / "whole", device="cpu", progress=False)
    with monkeypatch.context() as patch:
        acted = at_call(patch, owner, name, number, lambda: other_images(archive_path))
        found = attempt(cell, tmp_path / "store")
    assert acted == [number]
    if isinstance(found, Exception):
        assert re.search("was replaced.* run it again", str(found))
    else:
        assert lasting(found) == lasting(whole)
    for record in store.table(tmp_path / "store").to_dict("records"):
        same_data = record["key"] == whole["key"].item()
        assert same_data == (record["data_hash"] == whole["data_hash"].item())
        assert same_data == (record["preprocessing_hash"] == whole["preprocessing_hash"].item())
    again = study.run([cell], tmp_path / "store", device="cpu", progress=False)
    assert again["data_hash"].item() != whole["data_hash"].item()
    tally(ARCHIVE)


@pytest.mark.parametrize("afterwards", [membership, transfer], ids=lambda one: one.KIND)
def test_what_is_computed_afterwards_is_refused_where_the_archive_was_replaced(
    archive_path, tmp_path, monkeypatch, tally, afterwards
):
    cell = Cell(archive_path, "symmetric:0.5", "dance", 2, 0, "demo")
    study.run([cell], tmp_path / "store", device="cpu", progress=False)
    with monkeypatch.context() as patch:
        acted = at_call(patch, cells, "fitted", 0, lambda: other_images(archive_path))
        with pytest.raises(InputError, match=r"was replaced.* run it again"):
            afterwards.run([cell], tmp_path / "store", device="cpu", progress=False)
    assert acted
    assert not list((tmp_path / "store").glob(f"records/{afterwards.KIND}/*"))
    tally(ARCHIVE)


# ---------------------------------------------------------------- the store


def set_of(cell: Cell, place: Path) -> DistilledSet:
    """The set of a finished cell, after what the sentence says where the record alone came into the new folder."""
    try:
        return study.distilled(cell, place)
    except InputError as error:
        record = re.search(r"but not its distilled set; move the record (.*) away and run the cell again", str(error))
        Path(record.group(1)).unlink()
    study.run([cell], place, device="cpu", progress=False)
    return study.distilled(cell, place)


@pytest.mark.parametrize("how", ["moved", "deleted"])
@pytest.mark.parametrize("method", ["dance", "datm"])
def test_a_store_that_is_moved_or_deleted_is_made_anew_with_the_same_record(
    archive_path, tmp_path, monkeypatch, tries, tally, method, how
):
    cell = Cell(archive_path, "symmetric:0.5", method, 2, 0, "demo")
    whole = lasting(study.run([cell], tmp_path / "whole", device="cpu", progress=False))
    run = {"dance": dance._Distillation, "datm": datm.Datm}[method]
    places = [(training, "_epoch", range(1, 6)), (run, "iterate", range(1, 4)), (store, "write_tensors", range(1))]
    places += [(store.Store, "save_record", range(1, 4)), (store.Store, "record", range(1, 6))]
    draws = random.Random(f"{method} {how}")
    for number in range(tries(1, 5)):
        owner, name, calls = places[number % len(places)]
        place = tmp_path / str(number)
        away = partial(shutil.move, place, f"{place} away") if how == "moved" else partial(shutil.rmtree, place)
        with monkeypatch.context() as patch:
            acted = at_call(patch, owner, name, draws.choice(calls), away)
            found = attempt(cell, place)
        assert acted
        assert str(place) in str(found) if isinstance(found, Exception) else lasting(found) == whole
        assert lasting(study.run([cell], place, device="cpu", progress=False)) == whole
        assert len(set_of(cell, place)) == 6
        tally(STORE)


# ---------------------------------------------------------------- Ctrl-C


class Stop:
    """Ctrl-C before step `last` of the saves: before each call to the system."""

    def __init__(self, last: int) -> None:
        self.left = last

    def before(self, call):
        def stopping(*given):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return call(*given)

        return stopping

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(files, "open", self.before(open), raising=False)
        for name in ("fsync", "replace"):
            patch.setattr(files.os, name, self.before(getattr(os, name)))


@pytest.mark.parametrize("kind", SAVED)
def test_a_save_that_is_stopped_leaves_the_old_file_or_the_new_one_and_nothing_else(kind, tmp_path, monkeypatch, tally):
    name, save, read = SAVED[kind]
    path = tmp_path / name
    old, new = ((save(path, number), read(path))[1] for number in (0, 1))
    for step in range(4):
        save(path, 0)
        with monkeypatch.context() as patch:
            Stop(step).install(patch)
            with pytest.raises(KeyboardInterrupt):
                save(path, 1)
        assert same(read(path), new if step == 3 else old)  # the last step is the fsync of the folder
        assert [one for one in path.parent.iterdir() if one.suffix != ".lock"] == [path]
        tally(STOPPED)


def test_a_study_that_is_stopped_says_so_in_one_sentence_and_goes_on(
    archive_path, tmp_path, monkeypatch, capsys, tries, tally
):
    words = ["study", "--dataset", archive_path, "--methods", "dance", "--rates", "0.5", "--ipcs", "2", "--seeds", "1"]
    words += ["--device", "cpu", "--store-dir"]
    cell, draws = Cell(archive_path, "symmetric:0.5", "dance", 2, 0, "demo"), random.Random(0)
    whole = lasting(study.run([cell], tmp_path / "whole", device="cpu", progress=False))
    for number in range(tries(2, 12)):
        with monkeypatch.context() as patch:
            Stop(draws.randrange(24)).install(patch)
            with pytest.raises(SystemExit) as stop:
                main([*words, str(tmp_path / str(number))])
        assert stop.value.code == 130
        told = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
        assert told == "Stopped. What was finished is kept: the same command goes on from there."
        assert not list((tmp_path / str(number)).rglob("*.tmp"))
        assert lasting(study.run([cell], tmp_path / str(number), device="cpu", progress=False)) == whole
        tally(STOPPED)
