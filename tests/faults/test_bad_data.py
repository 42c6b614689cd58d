"""Data that cannot be used is refused in one sentence, without running anything in it, in bounded memory."""

from __future__ import annotations

import pickle
import resource
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import bad_pictures
import bad_sets
import numpy as np
import pytest
from image_sets import arrays, save

from ddlnl import archives, datasets, datm_import, flax_file, own_images, rcig_import, sources, torch_file, torch_tensor
from ddlnl.distilled import DistilledSet
from ddlnl.errors import DamagedError, InputError

PROMISE = "bad data is refused in one sentence"
CANARY: list[str] = []
ROOM = 256 * 2**20  # bytes that reading a bad file may take at most


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return CANARY.append, ("ran",)


def bad_arrays(source: np.random.Generator) -> Iterator[dict]:
    """Changes of a valid archive that make it invalid, of every kind, with random sizes."""
    good = arrays()
    images, labels = good["train_images"], good["train_labels"]
    for part in ("train", "test"):
        shape = tuple(source.integers(2, 6, source.integers(1, 6)).tolist())
        yield {f"{part}_images": source.random((12, 4, 4, 3))}
        yield {f"{part}_images": np.full((12, 4, 4, 3), np.nan, np.float32)}
        yield {f"{part}_images": images.astype(source.choice(["int8", "uint16", "int64", "bool", "complex64"]))}
        yield {f"{part}_images": np.zeros((*shape, 2), np.uint8)}
        yield {f"{part}_images": np.zeros((12, 4, 4, int(source.choice([0, 2, 4, 5]))), np.uint8)}
        yield {f"{part}_images": images[: int(source.integers(0, 12))]}
        yield {f"{part}_images": np.zeros((12, 4, 4, 1), np.uint8)}
        yield {f"{part}_images": np.zeros((12, 0, 4, 3), np.uint8)}
        yield {f"{part}_labels": labels + int(source.integers(1, 1000))}
        yield {f"{part}_labels": labels - int(source.integers(1, 1000))}
        yield {f"{part}_labels": labels.astype(np.float64)}
        yield {f"{part}_labels": np.where(labels == 1, np.nan, labels)}
        yield {f"{part}_labels": labels[: int(source.integers(0, 12))]}
        yield {f"{part}_labels": labels[:, None]}
        yield {f"{part}_labels": np.array([2**63 - 1] * 12, dtype=np.uint64)}
        yield {f"{part}_labels": labels.astype(str)}
    yield {"train_labels": np.where(labels == int(source.integers(0, 3)), (labels + 1) % 3, labels)}
    yield {"train_labels": np.zeros(12, np.int64)}
    yield {"class_names": np.array(["only"])}
    yield {"class_names": np.array(["same", "same", "other"])}
    yield {"class_names": np.array([1, 2, 3])}
    yield {"class_names": np.array([["a", "b", "c"]])}
    yield {"class_names": np.array("a")}
    yield {"class_names": np.array([b"a", b"b", b"c"])}
    yield {"class_names": np.array(["a", "b", None], dtype=object)}
    yield {"class_names": np.array(["a", "b", "\ud800"])}
    yield {"class_names": characters(0x110000)}
    yield {"class_names": characters(0x7FFFFFFF)}
    yield {"train_images": np.array([Payload()], dtype=object)}
    yield {"train_labels": np.array([Payload()] * 12, dtype=object)}
    yield {"observed_labels__worst": labels + 3}
    yield {"observed_labels__worst": labels[:5]}
    yield {"observed_labels__worst": np.array([Payload()] * 12, dtype=object)}


def characters(*numbers: int) -> np.ndarray:
    """Texts of one of these numbers each, which need not be characters, after "a" and "b"."""
    return np.array([97, 98, *numbers], "<u4").view("<U1")


def npy(shape: tuple[int, ...], dtype: str = "|u1", data: bytes = b"", header: str | None = None) -> bytes:
    """An .npy member whose header may lie about its data."""
    text = header or str({"descr": dtype, "fortran_order": False, "shape": shape})
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1") + data


def hostile(folder: Path) -> Iterator[Path]:
    """Archives whose members lie about their size, do not end, or are no arrays."""
    good = save(folder / "good.npz").read_bytes()
    members = {
        "huge shape": npy((10**12,)),
        "overflowing shape": npy((2**62, 2**62)),
        "negative shape": npy((-1, 4, 4, 3)),
        "short data": npy((12, 4, 4, 3), data=b"\0" * 100),
        "pickled": npy((1,), "|O", pickle.dumps(np.array([Payload()], dtype=object))),
        "code in the header": npy((), header="__import__('os').system('true')"),
        "deep header": npy((), header="(" * 5000 + ")" * 5000),
        "no array": b"\0" * 64,
        "empty": b"",
        "giant header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1),
        "old magic": b"\x93NUMPY\x09\x09" + b"\0" * 60,
        "zip in zip": good,
    }
    for index, (name, member) in enumerate(members.items()):
        path = folder / f"hostile-{index}-{name.replace(' ', '-')}.npz"
        save(path, without="train_images")
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("train_images.npy", member)
        yield path
    yield bomb(folder / "bomb.npz")
    yield bombs(folder / "bombs.npz")
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = save(folder / f"compressed-{kind}.npz", without="train_images")
        with zipfile.ZipFile(path, "a", kind) as file:
            file.writestr("train_images.npy", npy((12, 4, 4, 3), data=bytes(576)))
        yield path
    path = folder / "twice.npz"
    save(path)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as file:
        warnings.simplefilter("ignore")
        file.writestr("train_labels.npy", npy((12,), "<i8", np.full(12, 99).tobytes()))
    yield path
    for length in (0, 1, 21, 22, len(good) // 3, len(good) - 1):
        path = folder / f"cut-{length}.npz"
        path.write_bytes(good[:length])
        yield path
    path = folder / "folder.npz"
    path.mkdir()
    yield path


def bomb(path: Path) -> Path:
    """Half a gigabyte of zeros in half a megabyte."""
    save(path, without="train_images")
    block = bytes(2**22)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file, file.open("train_images.npy", "w") as member:
        member.write(npy((2**17, 32, 32, 4)))
        for _ in range(2**29 // len(block)):
            member.write(block)
    return path


def bombs(path: Path) -> Path:
    """24 label sets of 12 MiB of zeros each, none of which is much by itself."""
    save(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        for number in range(24):
            with file.open(f"observed_labels__{number}.npy", "w") as member:
                member.write(npy((3 * 2**19,), "<i8"))
                for _ in range(12):
                    member.write(bytes(2**20))
    return path


def read_or_refused(call, *arguments) -> str | None:
    """The sentence of a refusal, or None where something was read; it took no more than `ROOM` and ran nothing."""
    before, message = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, None
    try:
        call(*arguments)
    except (InputError, DamagedError) as error:
        message = str(error)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < ROOM, f"{grown / 2**20:.0f} MiB"
    assert not CANARY
    assert message is None or ("\n" not in message and len(message) < 1000), message
    return message


def refused(call, *arguments) -> str:
    """The sentence of a refusal that took no more than `ROOM` and ran nothing."""
    message = read_or_refused(call, *arguments)
    assert message is not None, arguments
    return message


def test_archives_that_break_the_format_are_refused(tmp_path, tally, tries):
    rounds = tries(1, 3)
    for seed in range(rounds):
        for index, changes in enumerate(bad_arrays(np.random.default_rng(seed))):
            path = save(tmp_path / f"{seed}-{index}.npz", changes)
            assert str(path) in refused(datasets.load, path)
            refused(own_images.load, path)
            tally(PROMISE)


def test_archives_that_lie_about_themselves_are_refused(tmp_path, tally):
    for path in hostile(tmp_path):
        assert path.name in refused(datasets.load, path)
        refused(archives.read, path)
        tally(PROMISE)


def test_label_files_and_checkpoints_that_are_something_else_are_refused(tmp_path, tally, tries):
    source = np.random.default_rng(0)
    contents = [b"", b"PK", pickle.dumps(Payload()), pickle.dumps({"clean_label": Payload()}), bytes(1000)]
    for payload in (Payload(), {"clean_label": Payload()}, [Payload()], {"clean_label": np.array([Payload()])}):
        contents.append(bad_sets.torch_save(pickle.dumps(payload, 2)))
    contents.append(bad_sets.torch_save(bytes(2**28), zipfile.ZIP_DEFLATED))
    contents.append(bad_sets.torch_save(pickle.dumps({}, 2), zipfile.ZIP_BZIP2))
    contents += bad_sets.knotted()
    for length in (0xDC, 0xDD, 0xDE, 0xDF, 0xC6, 0xC9, 0xDB):
        contents.append(bytes([0x81, 0xA1, 0x61, length]) + b"\xff" * 6)  # announces four billion items
    contents += [source.bytes(int(source.integers(1, 4000))) for _ in range(tries(15, 60))]
    for index, content in enumerate(contents):
        path = tmp_path / f"{index}.pt"
        path.write_bytes(content)
        for reader in (torch_file.read, torch_tensor.read, flax_file.read):
            refused(reader, path)
            tally(PROMISE)


def test_sets_that_are_something_else_are_refused(tmp_path, tally):
    source = np.random.default_rng(0)
    kinds = {
        DistilledSet.load: bad_sets.of_ours,
        rcig_import.read: bad_sets.of_rcig,
        datm_import.read: bad_sets.of_datm,
    }
    for reader, made in kinds.items():
        (folder := tmp_path / made.__name__).mkdir()
        for path in made(folder, source):
            assert str(path) in refused(reader, path)
            tally(PROMISE)


def test_pictures_that_are_broken_or_hostile_are_refused(tmp_path, tally):
    bad = {f"{name}.png": content for name, content in bad_pictures.hostile().items()} | {"pipe.png": None}
    for index, (name, content) in enumerate(bad.items()):
        folder = bad_pictures.folder(tmp_path / str(index), name, content)
        assert name in refused(own_images.load, folder, 8)
        tally(PROMISE)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it puts right
def test_damaged_pictures_are_read_or_refused(tmp_path, tally, tries):
    found = bad_pictures.damaged(np.random.default_rng(0), tries(10, 100))
    folder = bad_pictures.folder(tmp_path, "1.png", bad_pictures.whole("PNG"))
    for suffix, content in found:
        (path := folder / "cat" / f"2.{suffix}").write_bytes(content)
        message = read_or_refused(own_images.load, folder, 8)
        assert message is None or str(path) in message
        path.unlink()
        tally(PROMISE)


def test_links_that_lead_through_the_same_pictures_again_are_refused(tmp_path, tally):
    links = {"cat/again": ".", "cat/up": "..", "cat/other": "../dog", "bird": "cat", "dog/1.png": "0.png"}
    for index, (place, goal) in enumerate(links.items()):
        folder = bad_pictures.folder(tmp_path / str(index), "1.png", bad_pictures.whole("PNG"))
        (folder / place).symlink_to(goal)
        assert "through a link" in refused(own_images.load, folder, 8)
        tally(PROMISE)


def test_pictures_of_tiny_imagenet_and_their_list_are_refused_where_they_are_broken(tmp_path, tally):
    for part in ("train", "val"):
        for label in range(sources.TINY_CLASSES):
            (place := tmp_path / part / f"n{label:03}" / "images").mkdir(parents=True)
            (place / "0.JPEG").symlink_to(tmp_path / "picture")
    for content in bad_pictures.hostile().values():
        (tmp_path / "picture").write_bytes(content)
        assert "n000" in refused(sources.import_tiny_imagenet, tmp_path, tmp_path)
        tally(PROMISE)
    (place := tmp_path / "val" / "images").mkdir()
    (place / "0.JPEG").write_bytes(b"")
    for content in (b"caf\xe9.JPEG\tn000", b"\xff\xfe", b"0.JPEG", b"a\0b\tn000\n", b"\t"):
        (tmp_path / "val" / "val_annotations.txt").write_bytes(content)
        refused(sources.import_tiny_imagenet, tmp_path, tmp_path)
        tally(PROMISE)
