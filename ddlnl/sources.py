"""Where archives come from: CIFAR through torchvision, Tiny-ImageNet from its published folders."""

from __future__ import annotations

import http.client
from pathlib import Path

import filelock
import numpy as np

from ddlnl import archives
from ddlnl.errors import InputError, reason
from ddlnl.picture_file import opened
from ddlnl.places import path_of

# The class of torchvision.datasets, and the file that it downloads.
CIFAR = {"cifar10": ("CIFAR10", "cifar-10-python.tar.gz"), "cifar100": ("CIFAR100", "cifar-100-python.tar.gz")}
TINY_CLASSES = 200
TINY_SHAPE = (64, 64, 3)


def fetch(name: str, data_dir: str | Path | None = None) -> Path:
    """The archive `<name>.npz`, where it is or where it was just made.

    A missing CIFAR archive is downloaded through torchvision, which checks its MD5 sums, and written once into the
    first of `archives.folders(data_dir)`; torchvision's own files, which are pickles, stay beside it, and are used if
    they are already there and have those sums. Raises `InputError` where the download fails, and where Tiny-ImageNet is
    missing, which has no downloader.
    """
    found = archives.find(name, data_dir)
    if found is not None:
        return found
    folders = archives.folders(data_dir)
    searched = f"{name}.npz is not in {' or '.join(map(str, folders))}"
    if name not in CIFAR:
        raise InputError(
            f"{searched}: bring it there, or unpack tiny-imagenet-200.zip of Stanford's CS231n and run "
            "`python -m ddlnl data import-tiny-imagenet FOLDER`."
        )
    path = folders[0] / f"{name}.npz"
    try:
        folders[0].mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folders[0] / f".{name}.lock"):  # of several processes one downloads, the others wait
            if not path.is_file():
                archives.write(path, _download(name, folders[0]))
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise InputError(
            f"{searched}, and its download through torchvision failed ({reason(error)}); bring {name}.npz or the "
            f"published {CIFAR[name][1]} to {folders[0]}, or name a folder that has {name}.npz with data_dir or "
            "$DDLNL_DATA."
        ) from error
    return path


def _download(name: str, folder: Path) -> dict[str, np.ndarray]:
    # Imported here because it takes two seconds, and an archive that is there needs none of it.
    import torchvision.datasets

    published = getattr(torchvision.datasets, CIFAR[name][0])
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        images = published(folder, train=part == "train", download=True)
        arrays[f"{part}_images"] = np.ascontiguousarray(images.data)
        arrays[f"{part}_labels"] = np.asarray(images.targets, dtype=np.int64)
    return arrays | {"class_names": np.array(images.classes)}


def import_tiny_imagenet(folder: str | Path, data_dir: str | Path | None = None) -> Path:
    """Write `tiny_imagenet.npz` from the published folder layout; returns its path. Takes about a minute.

    folder: holds train/<wnid>/images/*.JPEG, and val/val_annotations.txt with val/images/*.JPEG or
    val/<wnid>/images/*.JPEG. A class is the rank of its wnid; images run class by class, files in lexicographic order,
    as 64x64 RGB. The validation images become the test set. Raises `InputError` where a part is missing, is no picture,
    or does not have all 200 classes.
    """
    folder = path_of(folder, "folder")
    train = {place.parent.name: _pictures(place) for place in sorted((folder / "train").glob("*/images"))}
    test = _validation(folder / "val")
    for part, found in (("train", train), ("val", test)):
        if len(found) != TINY_CLASSES or not all(found.values()):
            full = sum(bool(files) for files in found.values())
            layout = "<class>/images/*.JPEG" + (" or val_annotations.txt and images/*.JPEG" if part == "val" else "")
            raise InputError(f"{folder / part} has {layout} of {full} classes, and Tiny-ImageNet has {TINY_CLASSES}.")
    if sorted(train) != sorted(test):
        raise InputError(f"{folder} has other classes in val than in train, and both must have the same.")
    path = archives.folders(data_dir)[0] / "tiny_imagenet.npz"
    arrays = {"class_names": np.array(sorted(train))}
    for part, found in (("train", train), ("test", test)):
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = _decode(found)
    archives.write(path, arrays)
    return path


def _pictures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.JPEG"))


def _validation(folder: Path) -> dict[str, list[Path]]:
    """The files of each class, whether the folder is as published or was regrouped by class."""
    annotations = folder / "val_annotations.txt"
    if not (annotations.is_file() and _pictures(folder / "images")):
        return {place.parent.name: _pictures(place) for place in sorted(folder.glob("*/images"))}
    try:
        rows = [line.split("\t")[:2] for line in annotations.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{annotations} cannot be read ({reason(error)}).") from error
    if any(len(row) < 2 for row in rows):
        raise InputError(f"{annotations} has a line without a file name and a class, separated by a tab.")
    classes: dict[str, list[Path]] = {}
    for file, wnid in sorted(rows):
        classes.setdefault(wnid, []).append(folder / "images" / file)
    return classes


def _decode(classes: dict[str, list[Path]]) -> tuple[np.ndarray, np.ndarray]:
    files = [(label, file) for label, wnid in enumerate(sorted(classes)) for file in classes[wnid]]
    images = np.empty((len(files), *TINY_SHAPE), dtype=np.uint8)
    for image, (_, file) in zip(images, files, strict=True):
        with opened(file) as picture:
            size = picture.size
            if size == TINY_SHAPE[:2]:  # nothing larger is decoded
                image[:] = np.asarray(picture.convert("RGB"))
        if size != TINY_SHAPE[:2]:
            raise InputError(f"{file} has {size[0]}x{size[1]} pixels, and a Tiny-ImageNet picture has 64x64.")
    return images, np.array([label for label, _ in files], dtype=np.int64)
