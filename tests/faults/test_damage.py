"""A flipped bit or a cut is found wherever it is: the file is refused by name, or what is read is as it was written."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from image_sets import save

from ddlnl import archives, doctor, preprocess, store
from ddlnl.distilled import DistilledSet
from ddlnl.errors import DamagedError, InputError

FLIPS, CUTS = "flipped bits are found or change nothing", "cut files are found"
FORMATS = "stores of other formats are read, or refused with what to do"


def a_record(folder: Path) -> Path:
    body = {"method": "dance", "accuracies_last": [0.25, 0.5, 1 / 3], "notes": {}, "versions": {"torch": "2.12.1"}}
    store.Store(folder).save_record("cell", "0123456789abcdef", body)
    return folder / "records" / "cell" / "0123456789abcdef.json"


def an_artefact(folder: Path) -> Path:
    path = folder / "experts.safetensors"
    tensors = {"start": torch.arange(300.0), "labels": torch.arange(5), "nothing": torch.zeros(0, 3)}
    store.write_tensors(path, tensors, {"epoch": 3, "seconds": 1.5})
    return path


def a_distilled_set(folder: Path) -> Path:
    data = small.image_set()
    fitted = preprocess.fit(data.images, "normalise", "small")
    labels = torch.eye(3).repeat_interleave(2, 0)
    chosen = DistilledSet(torch.rand(6, 3, 8, 8), labels, data.class_names, "dance", 2, fitted, small.profile().student)
    chosen.save(folder / "set.safetensors")
    return folder / "set.safetensors"


def an_archive(folder: Path) -> Path:
    return save(folder / "own.npz")


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    return archives.read(path)


def set_in(path: Path) -> dict:
    tensors, meta = DistilledSet.load(path).state_without_preprocessing()
    return tensors | {"meta": meta}


KINDS: dict[str, tuple[Callable, Callable]] = {
    "record": (a_record, store.read_record),
    "artefact": (an_artefact, store.read_tensors),
    "distilled set": (a_distilled_set, set_in),
    "archive": (an_archive, arrays_in),
}


def same(a: object, b: object) -> bool:
    """Equal content, tensors and arrays bit by bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if torch.is_tensor(a):
        a, b = a.numpy(), b.numpy()
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b


def stands(read: Callable, path: Path, whole: object) -> bool:
    """Whether a reader refuses the file by name (not as one of another format), or reads what was written."""
    try:
        found = read(path)
    except (DamagedError, InputError) as error:
        return str(path) in str(error) and "this version reads" not in str(error)
    return same(found, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_changes_what_is_read(kind, tmp_path, tries, tally):
    make, read = KINDS[kind]
    path = make(tmp_path)
    whole, content, draws = read(path), path.read_bytes(), random.Random(0)
    for _ in range(count := tries(150, 2500)):
        place = draws.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert stands(read, path, whole), f"bit {place % 8} of byte {place // 8}"
    tally(FLIPS, count, count)


@pytest.mark.parametrize("kind", KINDS)
def test_no_cut_file_is_read(kind, tmp_path, tries, tally):
    make, read = KINDS[kind]
    path = make(tmp_path)
    content, draws = path.read_bytes(), random.Random(1)
    for _ in range(count := tries(25, 250)):
        length = draws.randrange(len(content))
        path.write_bytes(content[:length])
        with pytest.raises((DamagedError, InputError)) as error:
            read(path)
        assert str(path) in str(error.value), f"{length} of {len(content)} bytes"
    tally(CUTS, count, count)


def digits_of_the_format(path: Path) -> list[bytes]:
    """The content with every other digit in the place of the number of its format."""
    content = path.read_bytes()
    (at,) = [found.start(1) for found in re.finditer(rb'"format": ?"?(\d)', content)]
    others = (str(digit).encode() for digit in range(10) if str(digit).encode() != content[at : at + 1])
    return [content[:at] + digit + content[at + 1 :] for digit in others]


@pytest.mark.parametrize("form", store.READ)
@pytest.mark.parametrize("kind", ["record", "artefact", "distilled set"])
def test_another_digit_of_the_format_is_damage_and_not_another_format(kind, form, tmp_path, monkeypatch, tally):
    make, read = KINDS[kind]
    monkeypatch.setattr(store, "FORMAT", form)
    path = make(tmp_path)
    for damaged in digits_of_the_format(path):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match="does not match its checksum"):
            read(path)
        tally(FORMATS)


def as_of(form: int, monkeypatch, folder: Path) -> store.Store:
    """A store that the version with this format wrote."""
    with monkeypatch.context() as patch:
        patch.setattr(store, "FORMAT", form)
        a_record(folder)
        store.write_tensors(folder / "artefacts" / "key.safetensors", {"x": torch.ones(2)}, {"epoch": 3})
    return store.Store(folder)


def test_a_store_of_the_format_before_is_read(tmp_path, monkeypatch, tally):
    old, new = (as_of(form, monkeypatch, tmp_path / str(form)) for form in (1, store.FORMAT))
    assert old.record("cell", "0123456789abcdef") == new.record("cell", "0123456789abcdef")
    assert same(old.tensors("key"), new.tensors("key"))
    assert store.table(old.root).equals(store.table(new.root))
    whole = json.loads((old.root / "records" / "cell" / "0123456789abcdef.json").read_text())
    digest = hashlib.sha256(json.dumps(whole["body"], sort_keys=True).encode()).hexdigest()
    assert (whole["format"], whole["digest"]) == (1, digest)  # as they were written before there was a format 2
    tally(FORMATS, 3, 3)


def test_a_store_of_a_later_format_is_refused_with_what_to_do_and_left_as_it_is(tmp_path, monkeypatch, tally):
    later = as_of(store.FORMAT + 1, monkeypatch, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    sentence = r"has format 3, and this version reads the formats 1 and 2: install the ddlnl that wrote it .*store_dir"
    for read in (
        lambda: later.record("cell", "0123456789abcdef"),
        lambda: later.tensors("key"),
        lambda: store.table(tmp_path),
        lambda: later.compute("key", lambda: pytest.fail("it was made again"), {}),
    ):
        with pytest.raises(InputError, match=sentence):
            read()
        tally(FORMATS)
    found = [finding for finding in doctor._store(tmp_path) if finding.what == "other format"]
    assert len(found) == 2
    assert {path: path.read_bytes() for path in before} == before
    tally(FORMATS)
