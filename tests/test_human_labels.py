"""Import of human labels, and the reader that takes them from a pickle without unpickling."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import refusal

from ddlnl import datasets, human_labels, noise, torch_file
from ddlnl.__main__ import main

CLEAN = np.arange(40) % 10
SETS = {"aggre_label": 1, "random_label1": 2, "random_label2": 3, "random_label3": 4, "worse_label": 5}


def labels(shift: int) -> np.ndarray:
    """The clean labels with every `shift`-th image given to the next class."""
    return np.where(np.arange(40) % (shift + 1) == 0, (CLEAN + 1) % 10, CLEAN)


def content() -> dict[str, np.ndarray]:
    return {"clean_label": CLEAN} | {key: labels(shift) for key, shift in SETS.items()}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a small cifar10.npz, and nowhere else to look."""
    monkeypatch.setenv("DDLNL_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = np.zeros((40, 2, 2, 3), np.uint8)
    names = np.array([f"class {label}" for label in range(10)])
    arrays = {"train_images": images, "train_labels": CLEAN, "test_images": images, "test_labels": CLEAN}
    np.savez(tmp_path / "cifar10.npz", **arrays, class_names=names, observed_labels__own=labels(7))
    return tmp_path


def saved(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def test_the_label_sets_are_added_to_the_archive(place):
    imported = human_labels.import_cifar_n(saved(place / "labels.pt", content()))
    train = datasets.load("cifar10").train
    assert set(train.human) == {"own", "aggre", "random1", "random2", "random3", "worst"}
    assert np.array_equal(train.human["worst"], labels(5))
    assert np.array_equal(train.human["own"], labels(7))
    assert imported.path == place / "cifar10.npz"
    assert imported.rates["aggre"] == pytest.approx(0.5)
    assert not imported.published
    with np.load(imported.path) as file:
        assert str(file["human_labels_sha256"]) == imported.sha256
    noisy = noise.corrupt(train, "human:worst")
    assert np.array_equal(noisy.observed, labels(5))
    assert np.array_equal(noisy.clean, CLEAN)


def test_lists_of_whole_numbers_are_labels_too(place):
    given = {key: value.tolist() for key, value in content().items()}
    human_labels.import_cifar_n(saved(place / "labels.pt", given))
    assert np.array_equal(datasets.load("cifar10").train.human["aggre"], labels(1))


@pytest.mark.parametrize("kind", ["<i8", ">i8", "<i4", "|u1", "|i1", ">u2"])
def test_the_reader_gives_back_what_torch_saved_of_every_integer_type(tmp_path, kind):
    given = {"array": CLEAN.astype(kind), "again": CLEAN.astype(kind), "list": [3, -1, 70000], "text": "ä"}
    found = torch_file.read(saved(tmp_path / "labels.pt", given))
    assert list(found) == list(given)
    assert found["array"].dtype == given["array"].dtype
    assert np.array_equal(found["array"], given["array"])
    assert np.array_equal(found["again"], given["again"])
    assert (found["list"], found["text"]) == (given["list"], given["text"])


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_a_file_that_runs_code_when_unpickled_is_refused_and_runs_nothing(place):
    canary = place / "canary"
    path = saved(place / "labels.pt", content() | {"extra": Harm(canary)})
    before = (place / "cifar10.npz").read_bytes()
    assert "mkdir" in refusal(human_labels.import_cifar_n, path)
    assert not canary.exists()
    assert (place / "cifar10.npz").read_bytes() == before


REFUSED = {
    "objects": {"a": np.array([[1], "x"], dtype=object)},
    "floats": {"a": np.zeros(3)},
    "times": {"a": np.zeros(3, "M8[s]")},
    "records": {"a": np.zeros(3, [("x", "i8")])},
    "matrices": {"a": np.zeros((3, 2), int)},
    "tensors": {"a": torch.zeros(3)},
    "sets": {"a": {1, 2}},
    "numbers as keys": {1: 2},
    "no dictionary": [1, 2],
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_anything_but_a_dictionary_of_labels_is_refused(tmp_path, value):
    assert "was refused" in refusal(torch_file.read, saved(tmp_path / "labels.pt", value))


def packed(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("labels/data.pkl", data)
    return path


NONES = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
CRAFTED = {  # opcodes, and what the refusal says
    "a type of objects that denies it": (
        b"cnumpy\ndtype\n(X\2\0\0\0O8\x89\x88tR(K\3X\1\0\0\0|" + NONES + b"tb.",
        "type 'O8'",
    ),
    "an integer type with fields": (
        b"cnumpy\ndtype\n(X\2\0\0\0i8\x89\x88tR(K\3X\1\0\0\0<X\1\0\0\0a" + NONES + b"tb.",
        "structured type",
    ),
    "a memo far beyond memory": (b"}r\xff\xff\xff\xff0.", "opcode POP"),
    "a text longer than the file": (b"X\xff\xff\xff\x7fabc.", "refused"),
    "a function by name": (b"cbuiltins\neval\n.", "'builtins eval'"),
    "a part of an allowed module": (b"cnumpy\nload\n.", "'numpy load'"),
    "an instance": (b"(ibuiltins\ndict\n.", "opcode INST"),
    "a persistent name": (b"Pname\n.", "opcode PERSID"),
    "an extension": (b"\x82\1.", "opcode EXT1"),
    "a call of a text": (b"X\1\0\0\0a)R.", "not callable"),
    "another codec": (b"c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0hex\x86R.", "as 'hex'"),
    "an empty stack": (b"R.", "refused"),
    "a missing mark": (b"t.", "refused"),
    "no stop": (b"}", "refused"),
}


@pytest.mark.parametrize(("opcodes", "reason"), CRAFTED.values(), ids=CRAFTED)
def test_crafted_opcodes_are_refused(tmp_path, opcodes, reason):
    message = refusal(torch_file.read, packed(tmp_path / "labels.pt", b"\x80\2" + opcodes))
    assert reason in message
    assert len(message) < 500


def test_a_file_that_grows_is_refused_before_it_does(tmp_path):
    bomb = packed(tmp_path / "zip.pt", bytes(torch_file.MAX_BYTES + 1))
    assert bomb.stat().st_size < 10**5
    assert "larger than" in refusal(torch_file.read, bomb)
    text = b"X" + (2**20).to_bytes(4, "little") + b"a" * 2**20 + b"q\x00X\x06\x00\x00\x00latin1q\x01"
    again = b"c_codecs\nencode\nh\x00h\x01\x86R"
    assert "encodes" in refusal(torch_file.read, packed(tmp_path / "text.pt", b"\x80\x02" + text + again * 100 + b"."))
    long = b"\x80\x02}" + b"N0" * torch_file.MAX_OPCODES + b"."
    assert "opcode" in refusal(torch_file.read, packed(tmp_path / "long.pt", long))


def test_files_in_another_format_are_refused(tmp_path):
    torch.save(content(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "text.pt").write_text("labels")
    (tmp_path / "empty.pt").touch()
    for path in tmp_path.iterdir():
        assert "was refused" in refusal(torch_file.read, path)


def test_labels_that_do_not_fit_the_dataset_are_refused(place):
    def attempt(**changes: object) -> str:
        return refusal(human_labels.import_cifar_n, saved(place / "labels.pt", content() | changes))

    shuffled = np.roll(CLEAN, 1)
    assert shuffled.sum() == CLEAN.sum()
    assert "40 clean labels differ" in attempt(clean_label=shuffled)
    assert "aggre_label" in attempt(aggre_label=CLEAN[:-1])
    assert "0 to 9" in attempt(worse_label=CLEAN + 1)
    assert "whole numbers" in attempt(worse_label=["a"] * 40)
    assert "not a CIFAR-N label file" in refusal(
        human_labels.import_cifar_n, saved(place / "other.pt", {"clean_label": CLEAN})
    )
    assert "does not exist" in refusal(human_labels.import_cifar_n, place / "nowhere.pt")
    assert set(datasets.load("cifar10").train.human) == {"own"}


def test_the_command_line_reports_the_rates(place, capsys):
    main(["data", "import-cifar-n", str(saved(place / "labels.pt", content())), "--data-dir", str(place)])
    line = capsys.readouterr().out
    assert "aggre (50.00% wrong)" in line
    assert "not byte for byte the published file" in line


PUBLISHED = {
    "cifar10": {
        "aggre": (0.0901, 4349, 5509, "b3c3d486d22c3055", "6 9 9 4 1 1 2 7 8 0 4 7"),
        "random1": (0.1723, 4445, 5558, "b5dc9007ae247a48", "6 9 9 4 1 1 2 7 8 3 6 0"),
        "random2": (0.1812, 4479, 5497, "1182c45d3a246366", "4 9 9 5 1 1 2 7 8 0 4 7"),
        "random3": (0.1764, 4389, 5518, "b51e116c617ded2c", "6 9 0 4 1 9 2 4 8 8 4 7"),
        "worst": (0.4021, 4040, 6053, "a64d887522cf6d8f", "4 9 0 5 1 9 2 4 8 8 6 0"),
    },
    "cifar100": {"noisy_fine": (0.4020, 199, 865, "4a1efd5da7a214b2", "19 63 10 11 1 86 90 28 23 31 39 33")},
}


@pytest.mark.parametrize(("name", "label_set"), [(name, one) for name, sets in PUBLISHED.items() for one in sets])
def test_the_human_labels_in_the_archives_are_the_published_ones(archive, name, label_set):
    train = datasets.load(name, archive(name)).train
    if label_set not in train.human:
        pytest.skip(f"{name}.npz in $DDLNL_DATA has no human labels {label_set}")
    noisy = noise.corrupt(train, f"human:{label_set}", seed=3)
    rate, smallest, largest, digest, first = PUBLISHED[name][label_set]
    sizes = np.bincount(noisy.observed)
    assert noise.realised_rate(noisy) == pytest.approx(rate, abs=5.01e-5)
    assert (sizes.min(), sizes.max()) == (smallest, largest)
    assert datasets.label_hash(noisy.observed) == digest
    assert " ".join(map(str, noisy.observed[:12])) == first
    assert np.array_equal(noisy.transition, noise.realised_transition(noisy))


@pytest.mark.parametrize(("name", "file"), [("cifar10", "CIFAR-10_human.pt"), ("cifar100", "CIFAR-100_human.pt")])
def test_the_published_files_are_imported(archive, tmp_path, name, file):
    folder = archive(name)
    if not (folder / file).is_file():
        pytest.skip(f"{file} is not in $DDLNL_DATA ({folder})")
    with np.load(folder / f"{name}.npz") as arrays:
        plain = {key: arrays[key] for key in arrays.files if not key.startswith("observed_labels__")}
    np.savez(tmp_path / f"{name}.npz", **plain)
    imported = human_labels.import_cifar_n(folder / file, tmp_path)
    assert imported.published
    train = datasets.load(name, tmp_path).train
    assert {one: datasets.label_hash(train.human[one]) for one in train.human} == {
        one: values[3] for one, values in PUBLISHED[name].items()
    }
