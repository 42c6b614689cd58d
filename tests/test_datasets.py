"""Datasets, archives and where they come from."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_sets import arrays, refusal, save

from ddlnl import archives, datasets
from ddlnl.errors import InputError


def test_digits_need_no_download_and_keep_their_split():
    data = datasets.load("digits")
    again = datasets.load("digits")
    assert (data.name, len(data.train), len(data.test), data.train.num_classes) == ("digits", 1347, 450, 10)
    assert data.train.images.shape[1:] == (8, 8, 1)
    assert data.train.images.dtype == np.uint8
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    assert datasets.label_hash(data.train.clean) == datasets.label_hash(again.train.clean) == "bbf2e7198ae1b683"
    assert data.train.fingerprint == again.train.fingerprint != data.test.fingerprint


def test_digits_hold_every_image_of_scikit_learn_once():
    from sklearn.datasets import load_digits

    data = datasets.load("digits")
    ours = np.concatenate([data.train.images, data.test.images]).reshape(1797, -1)
    theirs = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, theirs))


@pytest.mark.parametrize(
    ("name", "shape", "train", "test", "classes", "labels"),
    [
        ("cifar10", (32, 32, 3), 50000, 10000, 10, "f5cfe00b0f00968c"),
        ("cifar100", (32, 32, 3), 50000, 10000, 100, "8bf4935e7c77a309"),
    ],
)
def test_the_cifar_archives_are_complete_and_in_the_published_order(archive, name, shape, train, test, classes, labels):
    data = datasets.load(name, archive(name))
    assert (len(data.train), len(data.test), data.train.num_classes) == (train, test, classes)
    assert data.train.images.shape[1:] == data.test.images.shape[1:] == shape
    assert datasets.label_hash(data.train.clean) == labels
    assert (np.bincount(data.test.clean) == test // classes).all()


def test_archives_are_looked_up_in_data_dir_then_the_environment_then_the_cache(tmp_path, monkeypatch):
    places = {"given": tmp_path / "given", "named": tmp_path / "named", "cached": tmp_path / "cache" / "ddlnl"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DDLNL_DATA", str(places["named"]))
    for number, (word, folder) in reversed(list(enumerate(places.items()))):
        save(folder / "cifar10.npz", {"train_images": np.full((12, 4, 4, 3), number, np.uint8)})
        found = datasets.load("cifar10", places["given"])
        assert found.train.images.max() == number, word
        assert found.name == "cifar10"


def test_a_path_is_loaded_and_named_after_its_file(tmp_path):
    path = save(tmp_path / "leaves.npz", {"observed_labels__experts": np.arange(12)[::-1] % 3})
    for given_as in (path, str(path)):
        data = datasets.load(given_as)
        assert data.name == data.train.name == data.test.name == "leaves"
        assert data.train.class_names == ("class 0", "class 1", "class 2")
        assert np.array_equal(data.train.observed, data.train.clean)
        assert data.train.human["experts"].tolist() == (np.arange(12)[::-1] % 3).tolist()
        assert not data.test.human


def test_labels_of_any_integer_type_become_int64(tmp_path):
    labels = arrays()["train_labels"]
    for kind in (np.uint8, np.int16, ">i4", np.uint64):
        train = datasets.load(save(tmp_path / "own.npz", {"train_labels": labels.astype(kind)})).train
        assert train.observed.dtype == train.clean.dtype == np.int64
        assert np.array_equal(train.clean, labels)


def test_a_compressed_archive_and_extra_keys_are_accepted(tmp_path):
    np.savez_compressed(tmp_path / "own.npz", **arrays(), source=np.array("my camera"))
    assert len(datasets.load(tmp_path / "own.npz").train) == 12


BAD_ARRAYS = {
    "images of floats": ({"train_images": np.zeros((12, 4, 4, 3))}, "float64"),
    "images that are NaN": ({"test_images": np.full((12, 4, 4, 3), np.nan, np.float32)}, "float32"),
    "channels first": ({"train_images": np.zeros((12, 3, 4, 4), np.uint8)}, r"\(N, H, W, C\)"),
    "images without channels": ({"train_images": np.zeros((12, 4, 4), np.uint8)}, r"\(N, H, W, C\)"),
    "no images": ({"test_images": np.zeros((0, 4, 4, 3), np.uint8)}, "N at least 1"),
    "too few labels": ({"train_labels": np.arange(11) % 3}, r"\(12,\)"),
    "labels of floats": ({"train_labels": np.arange(12.0) % 3}, "float64"),
    "labels in columns": ({"test_labels": np.eye(12, 3, dtype=int)}, r"\(12, 3\)"),
    "a label too high": ({"train_labels": np.arange(12) % 4}, "0 to 2"),
    "a negative label": ({"test_labels": np.arange(12) % 3 - 1}, "from -1 to 1"),
    "an empty training class": ({"train_labels": np.arange(12) % 2}, "class 2"),
    "test images of another size": ({"test_images": np.zeros((12, 5, 5, 3), np.uint8)}, "differ in shape"),
    "test images without colour": ({"test_images": np.zeros((12, 4, 4, 1), np.uint8)}, "differ in shape"),
    "human labels of another length": ({"observed_labels__a": np.zeros(11, int)}, "the a labels"),
    "human labels out of range": ({"observed_labels__a": np.full(12, 3)}, "the a labels"),
    "one class": ({"class_names": np.array(["only"]), "train_labels": np.zeros(12, int)}, "at least 2"),
    "class names twice": ({"class_names": np.array(["a", "b", "a"])}, "different texts"),
    "class names that are numbers": ({"class_names": np.arange(3)}, "different texts"),
    "class names that are no characters": ({"class_names": np.array([9, 8, 2**31 - 1], "<u4").view("<U1")}, "texts"),
    "class names that cannot be written": ({"class_names": np.array(["a", "b", "\ud800"])}, "different texts"),
    "class names as objects": ({"class_names": np.array(["a", "b", "c"], dtype=object)}, "Object arrays"),
}


@pytest.mark.parametrize(("changes", "reason"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_an_archive_that_breaks_the_format_is_refused_in_one_sentence(tmp_path, changes, reason):
    path = save(tmp_path / "own.npz", changes)
    with pytest.raises(InputError, match=reason):
        datasets.load(path)
    assert refusal(datasets.load, path).startswith(str(path))


@pytest.mark.parametrize("key", archives.REQUIRED)
def test_an_archive_without_a_key_is_refused_by_its_name(tmp_path, key):
    assert f"lacks {key};" in refusal(datasets.load, save(tmp_path / "own.npz", without=key))


def test_what_has_another_key_is_not_unpacked(tmp_path):
    path = save(tmp_path / "own.npz", {"embeddings": np.zeros(3), "observed_labels__a": np.zeros(12, int)})
    assert set(archives.read(path)) == {*archives.REQUIRED, "observed_labels__a"}
    assert set(archives.read(path, others=True)) == {*archives.REQUIRED, "observed_labels__a", "embeddings"}


def test_an_archive_may_unpack_to_so_much_and_no_more_in_all(tmp_path):
    """Twenty arrays that each grow credibly, of a file that does not."""
    sets = {f"observed_labels__{one}": np.zeros(2**17, np.int64) for one in range(20)}
    np.savez_compressed(tmp_path / "own.npz", **arrays(), **sets)
    assert (tmp_path / "own.npz").stat().st_size < archives.SMALL
    assert "grows more than 200 times" in refusal(datasets.load, tmp_path / "own.npz")


def test_what_is_no_archive_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    (tmp_path / "empty.npz").touch()
    save(tmp_path / "whole.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-100])
    for name in ("one", "empty", "cut"):
        assert "is not an .npz archive" in refusal(datasets.load, tmp_path / f"{name}.npz")
    assert "does not exist" in refusal(datasets.load, tmp_path / "nowhere.npz")


def test_a_damaged_archive_is_noticed_by_its_checksum(tmp_path):
    path = save(tmp_path / "own.npz")
    content = bytearray(path.read_bytes())
    start = content.index(arrays()["train_images"].tobytes())
    content[start] ^= 1
    path.write_bytes(content)
    assert "CRC" in refusal(datasets.load, path)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    assert refusal(datasets.load, "cifr100").endswith("Did you mean 'cifar100'?")
    assert "digits, cifar10, cifar100, tiny_imagenet" in refusal(datasets.load, "svhn")


def test_a_subset_takes_all_labels_along():
    data = arrays()
    labels = data["train_labels"]
    whole = datasets.ImageSet(data["train_images"], labels[::-1], labels, ("a", "b", "c"), "own", {"x": labels[::-1]})
    for index in (np.array([7, 2, 2]), labels == 1, slice(3, 9)):
        part = whole.subset(index)
        assert np.array_equal(part.images, whole.images[index])
        assert np.array_equal(part.observed, whole.observed[index])
        assert np.array_equal(part.clean, whole.clean[index])
        assert np.array_equal(part.human["x"], whole.human["x"][index])
        assert part.fingerprint != whole.fingerprint
        assert part.class_names == whole.class_names


def test_the_fingerprint_knows_pixels_and_shape_but_not_labels():
    data = arrays()
    images, labels, names = data["train_images"], data["train_labels"], ("a", "b", "c")
    one = datasets.ImageSet(images, labels, labels, names, "own")
    other = datasets.ImageSet(images, labels[::-1], labels, names, "else")
    wide = datasets.ImageSet(images.reshape(12, 2, 8, 3), labels, labels, names, "own")
    strided = datasets.ImageSet(np.asfortranarray(images), labels, labels, names, "own")
    assert one.fingerprint == other.fingerprint == strided.fingerprint != wide.fingerprint
    assert len(one.fingerprint) == 64


@settings(deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62), max_size=20))
def test_label_hash_is_sha256_of_little_endian_int64(values):
    expected = hashlib.sha256(b"".join(value.to_bytes(8, "little", signed=True) for value in values)).hexdigest()[:16]
    assert datasets.label_hash(np.array(values, dtype=np.int64)) == expected
    assert datasets.label_hash(np.array(values, dtype=">i8")) == expected


def test_writing_an_archive_fails_without_a_trace_and_keeps_the_old_one(tmp_path, monkeypatch):
    path = save(tmp_path / "own.npz")
    before = path.read_bytes()

    def cut_short(file, **_):
        file.write(b"half an archive")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", cut_short)
    with pytest.raises(KeyboardInterrupt):
        archives.write(path, arrays())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
