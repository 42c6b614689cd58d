"""A reader's own images: an archive or a folder of pictures, with the labels as they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ddlnl import archives, datasets, noise
from ddlnl.datasets import ImageSet
from ddlnl.errors import InputError
from ddlnl.generators import numpy_generator
from ddlnl.picture_file import opened
from ddlnl.places import path_of

SIZES = (8, 128)  # pixels a side: the networks halve an image at least twice, and larger ones take days
EXAMPLE = "instance:0.3"  # errors that depend on the image, as people make them
GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


@dataclass(frozen=True, eq=False)
class OwnImages:
    """Images with labels as they are given.

    train: `.observed` and `.clean` are both the given labels. test: with clean labels, or None. names: one per training
    image, its file or its number. about: one sentence on what was done to pictures, "" for images that were arrays.
    """

    train: ImageSet
    test: ImageSet | None
    names: tuple[str, ...]
    about: str = ""


def load(data: str | Path, size: int | None = None, data_dir: str | Path | None = None) -> OwnImages:
    """Read a folder of pictures, an archive (`ddlnl.archives`; its test part may be missing) or a named dataset.

    data: a folder with <class>/<picture>, or with train/<class>/<picture> and perhaps test/<class>/<picture>, in the
    formats of torchvision's ImageFolder; the path of an .npz archive; or a name of `datasets.NAMES`. size: the side in
    pixels that the pictures of a folder are brought to, from 8 to 128; None takes 64 where the shorter sides have a
    median of at least 64, else 32. Raises `InputError` where the data cannot be used.
    """
    place = path_of(data, "data")
    if size is not None and not place.is_dir():
        raise InputError(f"The size {size} is for a folder of pictures, and {data} is none; leave it out.")
    if place.is_dir():
        return _folder(place, size)
    if str(data) in datasets.NAMES:
        both = datasets.load(str(data), data_dir)
        train, test = both.train, both.test
    else:
        train, test = datasets.archive_parts(place, _arrays(place))
    return OwnImages(train, test, tuple(map(str, range(len(train)))))


def choose(
    data: str | Path | None = None,
    spec: str | None = None,
    count: int | None = None,
    size: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
) -> OwnImages:
    """What a run is about: the images of `load`, or for None the embedded digits with planted label errors.

    spec: a noise as in `noise.corrupt` that the labels get, so that the true ones are known; None leaves them as they
    are (those of digits get `EXAMPLE`). count: so many of the training images, drawn at random; None takes all.
    data_dir: where the archive of a named dataset is. Raises `InputError` where there are fewer images, or where the
    data cannot be used.
    """
    own = load("digits" if data is None else data, size, data_dir)
    spec = spec or (EXAMPLE if data is None else "clean")
    train, names = noise.corrupt(own.train, spec, seed), own.names
    if count is not None:
        if not 1 <= count <= len(train):
            raise InputError(
                f"The number of images is {count}, and it must be from 1 to {len(train)}, which there are."
            )
        drawn = np.sort(numpy_generator(seed, "own images").permutation(len(train))[:count])
        train, names = train.subset(drawn), tuple(names[index] for index in drawn)
    return replace(own, train=train, names=names)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Those of an archive, which has both test arrays or neither."""
    arrays = archives.read(path, [key for key in archives.REQUIRED if not key.startswith("test_")])
    return archives.read(path) if {"test_images", "test_labels"} & set(arrays) else arrays


def _folder(root: Path, size: int | None) -> OwnImages:
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not SIZES[0] <= size <= SIZES[1]):
        raise InputError(f"The size is {size!r}, and it must be a whole number from {SIZES[0]} to {SIZES[1]}.")
    split = (root / "train").is_dir() and bool(_classes(root / "train"))
    whole = root / "train" if split else root
    if (count := len(_classes(whole))) < 2:
        raise InputError(f"The folder {whole} holds {count} class folders, and at least 2 are needed.")
    files, labels, classes = _files(whole)
    modes, sides = zip(*map(_look, files), strict=True)
    shorter = [min(one) for one in sides]
    size = size or (64 if np.median(shorter) >= 64 else 32)
    mode = "L" if all(one in GREY for one in modes) else "RGB"
    train = ImageSet(_decode(files, size, mode), labels, labels, classes, root.name)
    test = _test(root / "test", train, mode) if split and (root / "test").is_dir() else None
    return OwnImages(
        train, test, tuple(str(file.relative_to(root)) for file in files), _about(sides, modes, size, mode)
    )


def _classes(root: Path) -> list[str]:
    """The names of the class folders, without hidden ones, which editors and notebooks leave behind."""
    return sorted(one.name for one in os.scandir(root) if one.is_dir() and not one.name.startswith("."))


def _files(root: Path) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """Pictures in the order of torchvision's ImageFolder, their labels and the names of the classes."""
    # Imported here because it takes two seconds, and an archive needs none of it.
    from torchvision.datasets import ImageFolder

    class Visible(ImageFolder):
        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            names = _classes(Path(directory))
            return names, {name: label for label, name in enumerate(names)}

    _refuse_loops(root)
    found = Visible(root, allow_empty=True)
    labels = np.array(found.targets, dtype=np.int64)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(found.classes)) == 0)
    if empty.size:
        raise InputError(f"{root / found.classes[empty[0]]} holds no picture, and every class needs at least one.")
    files = [Path(file) for file, _ in found.samples]
    _refuse_repeats(files)
    return files, labels, tuple(found.classes)


def _refuse_loops(root: Path) -> None:
    """A link to a folder above would lead through the same pictures again and again, and two of them for ever."""
    for name in _classes(root):
        _refuse_repeats(folder for folder, _, _ in os.walk(root / name, followlinks=True))


def _refuse_repeats(paths: Iterable[str | Path]) -> None:
    """Raise `InputError` at the first path that is another one's through a link: both halves would hold its picture."""
    seen: dict[str, str | Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise InputError(f"{path} is {seen[real]} through a link, and every picture must be there once.")
        seen[real] = path


def _look(file: Path) -> tuple[str, tuple[int, int]]:
    """The mode and the size of a picture, read from its head."""
    with opened(file) as picture:
        mode, size = picture.mode, picture.size
    if mode not in GREY + COLOUR:
        raise InputError(f"{file} has pixels of the kind {mode}, and pictures must have 8 bits a channel.")
    return mode, size


def _decode(files: Sequence[Path], size: int, mode: str) -> np.ndarray:
    """(N, size, size, C) uint8: the central square of each picture, upright, transparent parts white."""
    images = np.empty((len(files), size, size, 1 if mode == "L" else 3), dtype=np.uint8)
    for image, file in zip(images, files, strict=True):
        with opened(file) as stored:
            picture = ImageOps.exif_transpose(stored)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            square = ImageOps.fit(picture.convert(mode), (size, size), Image.Resampling.BICUBIC)
            image[:] = np.asarray(square).reshape(image.shape)
    return images


def _test(root: Path, train: ImageSet, mode: str) -> ImageSet:
    strange = [name for name in _classes(root) if name not in train.class_names]
    if strange or not _classes(root):
        what = f"the class {strange[0]!r}, which train does not have" if strange else "no class"
        raise InputError(f"{root} has {what}; its class folders must be among those of train.")
    files, labels, classes = _files(root)
    for file in files:
        _look(file)
    labels = np.array([train.class_names.index(classes[label]) for label in labels])
    return ImageSet(_decode(files, train.images.shape[1], mode), labels, labels, train.class_names, train.name)


def _about(sides: Sequence[tuple[int, int]], modes: Sequence[str], size: int, mode: str) -> str:
    cut = sum(width != height for width, height in sides)
    grey = sum(one in GREY for one in modes) if mode == "RGB" else 0
    done = [f"all {len(sides)} training pictures were brought to {size}x{size} pixels"]
    done += [f"{cut} that are not square were cut to their central square"] if cut else []
    done += [f"{grey} grey ones became colour"] if grey else []
    return f"For the networks {', '.join(done)}."
