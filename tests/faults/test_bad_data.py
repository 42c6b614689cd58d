"""Data that cannot be used is refused in one sentence, without running anything in it, in bounded memory."""

from __future__ import annotations

import io
import pickle
import resource
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from image_sets import arrays, save

from ddlnl import archives, datasets, flax_file, own_images, torch_file
from ddlnl.errors import InputError

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
    yield {"train_images": np.array([Payload()], dtype=object)}
    yield {"train_labels": np.array([Payload()] * 12, dtype=object)}
    yield {"observed_labels__worst": labels + 3}
    yield {"observed_labels__worst": labels[:5]}
    yield {"observed_labels__worst": np.array([Payload()] * 12, dtype=object)}


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


def refused(call, *arguments) -> str:
    """The sentence of a refusal that took no more than `ROOM` and ran nothing."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as error:
        call(*arguments)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < ROOM, f"{grown / 2**20:.0f} MiB"
    assert not CANARY
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1000
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
    good = io.BytesIO()
    with zipfile.ZipFile(good, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"clean_label": [1, 2, 3]}, 2))
    contents = [b"", b"PK", pickle.dumps(Payload()), pickle.dumps({"clean_label": Payload()}), bytes(1000)]
    for payload in (Payload(), {"clean_label": Payload()}, [Payload()], {"clean_label": np.array([Payload()])}):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as members:
            members.writestr("archive/data.pkl", pickle.dumps(payload, 2))
        contents.append(file.getvalue())
    big = io.BytesIO()
    with zipfile.ZipFile(big, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("archive/data.pkl", bytes(2**28))
    contents.append(big.getvalue())
    for length in (0xDC, 0xDD, 0xDE, 0xDF, 0xC6, 0xC9, 0xDB):
        contents.append(bytes([0x81, 0xA1, 0x61, length]) + b"\xff" * 6)  # announces four billion items
    contents += [source.bytes(int(source.integers(1, 4000))) for _ in range(tries(15, 60))]
    for index, content in enumerate(contents):
        path = tmp_path / f"{index}.pt"
        path.write_bytes(content)
        for reader in (torch_file.read, flax_file.read):
            refused(reader, path)
            tally(PROMISE)
