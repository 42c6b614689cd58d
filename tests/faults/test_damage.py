"""A flipped bit or a cut is found wherever it is: the file is refused by name, or what is read is as it was written."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from image_sets import save

from ddlnl import archives, preprocess, store
from ddlnl.distilled import DistilledSet
from ddlnl.errors import DamagedError, InputError

FLIPS, CUTS = "flipped bits are found or change nothing", "cut files are found"


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


def body_in(path: Path) -> dict:
    """A record as `Store.record` takes it: one of another format is named and left alone."""
    whole = store.read_record(path)
    if whole["format"] != store.FORMAT:
        raise DamagedError(f"{path} has another format.")
    return whole["body"]


KINDS: dict[str, tuple[Callable, Callable]] = {
    "record": (a_record, body_in),
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
    """Whether a reader refuses the file by name or reads what was written."""
    try:
        found = read(path)
    except (DamagedError, InputError) as error:
        return str(path) in str(error)
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
