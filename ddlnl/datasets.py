"""Named datasets and archives to sets of images: uint8 pixels, observed and clean labels, class names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ddlnl import archives, sources
from ddlnl.errors import InputError, nearest
from ddlnl.places import path_of

NAMES = ("digits", "cifar10", "cifar100", "tiny_imagenet")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with the labels a learner sees and the true ones.

    images: (N, H, W, C) uint8, C 1 or 3. observed, clean: (N,) int64 in 0..K-1. class_names: K names. name: the
    dataset, for a path the archive's stem. human: label sets that people gave to the same images, (N,) int64 each.
    noise: what was done to `observed`, as `str(noise.parse(...))`. transition: (K, K) float64 matrix of that noise,
    rows clean, columns observed; None before any. Labels of any other integer type are converted; anything else raises
    `InputError`.
    """

    images: np.ndarray
    observed: np.ndarray
    clean: np.ndarray
    class_names: tuple[str, ...]
    name: str
    human: Mapping[str, np.ndarray] = field(default_factory=dict)
    noise: str = "clean"
    transition: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check_images(self.images)
        count, classes = len(self.images), len(self.class_names)
        if classes < 2:
            raise InputError(f"there are {classes} class names, and at least 2 are needed.")
        for name in ("observed", "clean"):
            object.__setattr__(self, name, _labels(getattr(self, name), count, classes, f"the {name} labels"))
        human = {name: _labels(given, count, classes, f"the {name} labels") for name, given in self.human.items()}
        object.__setattr__(self, "human", human)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"ImageSet({self.name}: {len(self)} images of {shape} in {self.num_classes} classes, noise {self.noise})"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of the shape and the pixels; labels play no part."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).reshape(-1))
        return digest.hexdigest()

    def subset(self, index: np.ndarray | slice) -> ImageSet:
        """The images that `index` (integers, a mask or a slice) selects, with all their labels."""
        human = {name: labels[index] for name, labels in self.human.items()}
        chosen = {name: getattr(self, name)[index] for name in ("images", "observed", "clean")}
        return replace(self, **chosen, human=human)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test set with the same classes and image shape."""

    train: ImageSet
    test: ImageSet

    @property
    def name(self) -> str:
        return self.train.name


def load(name: str | Path, data_dir: str | Path | None = None) -> Dataset:
    """The dataset of that name, or the one in the archive at that path (ending in .npz).

    `digits` comes with scikit-learn: 1,347 training and 450 test images of 8x8x1, a fixed stratified split. The others
    are archives, looked up in `data_dir`, $DDLNL_DATA and the user's cache directory; the two CIFAR sets are downloaded
    through torchvision where none has them. Images stay in their published order. Raises `InputError` on an unknown
    name, a missing file or an archive that breaks the format, an empty training class included.
    """
    if str(name).endswith(".npz"):
        return _from_archive(path_of(name, "dataset"))
    if name not in NAMES:
        allowed = f"it is one of {', '.join(NAMES)}, or a path that ends in .npz."
        raise InputError(f"The dataset {str(name)!r} is unknown; {allowed}{nearest(name, NAMES)}")
    return _digits() if name == "digits" else _from_archive(sources.fetch(name, data_dir))


def label_hash(labels: np.ndarray) -> str:
    """The first 16 hex digits of SHA-256 over the labels as little-endian int64: how label vectors are named."""
    return hashlib.sha256(np.asarray(labels).astype("<i8").tobytes()).hexdigest()[:16]


def _from_archive(path: Path) -> Dataset:
    train, test = archive_parts(path, archives.read(path))
    return Dataset(train, test)


def archive_parts(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[ImageSet, ImageSet | None]:
    """The training and the test set in the arrays of the archive at `path`, None for a test set that it does not have.

    Raises `InputError` where they break the format, an empty training class included.
    """
    prefix = archives.HUMAN
    human = {key.removeprefix(prefix): labels for key, labels in arrays.items() if key.startswith(prefix)}
    try:
        names = _class_names(arrays["class_names"])
        train = _part(arrays, "train", names, path.stem, human)
        test = _part(arrays, "test", names, path.stem, {}) if "test_images" in arrays else None
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from None
    if test is not None and train.images.shape[1:] != test.images.shape[1:]:
        shapes = " and ".join(str(part.images.shape[1:]) for part in (train, test))
        raise InputError(f"{path} cannot be used: training and test images differ in shape ({shapes}), and must not.")
    return train, test


def _part(
    arrays: Mapping[str, np.ndarray], part: str, names: tuple[str, ...], name: str, human: Mapping[str, np.ndarray]
) -> ImageSet:
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    try:
        found = ImageSet(images, labels, labels, names, name, human)
    except InputError as error:
        raise InputError(f"in the {part} part {error}") from None
    empty = np.flatnonzero(np.bincount(found.clean, minlength=len(names)) == 0)
    if part == "train" and empty.size:
        raise InputError(f"no training image has the label {empty[0]} ({names[empty[0]]}), and every class needs one.")
    return found


def _class_names(names: np.ndarray) -> tuple[str, ...]:
    try:
        texts = names.tolist() if names.ndim == 1 and names.dtype.kind == "U" else []
        "".join(texts).encode()
    except (SystemError, UnicodeError):  # numbers that are no characters, which Python refuses here or later
        texts = []
    if not texts or len(set(texts)) != len(names):
        found = f"{names.dtype} of shape {names.shape}"
        raise InputError(f"class_names must be a one-dimensional array of different texts, and is {found}.")
    return tuple(texts)


def _check_images(images: np.ndarray) -> None:
    allowed = "they must be uint8 (N, H, W, C), pixels from 0 to 255, with C 1 or 3 and N at least 1."
    if not isinstance(images, np.ndarray):
        raise InputError(f"the images are a {type(images).__name__}, and {allowed}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or images.size == 0:
        raise InputError(f"the images are {images.dtype} of shape {images.shape}, and {allowed}")


def _labels(labels: np.ndarray, count: int, classes: int, what: str) -> np.ndarray:
    """The labels as int64, without a copy where they already are."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise InputError(f"{what} are {labels.dtype} of shape {labels.shape}, and must be int64 of shape ({count},).")
    if labels.min() < 0 or labels.max() >= classes:
        span = f"from {labels.min()} to {labels.max()}"
        raise InputError(f"{what} run {span}, and {classes} class names allow 0 to {classes - 1}.")
    return labels.astype(np.int64, copy=False)


def _digits() -> Dataset:
    # Only this dataset needs scikit-learn, whose import takes a second.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.rint(bunch.images * 255 / 16).astype(np.uint8)[..., np.newaxis]
    labels = bunch.target.astype(np.int64)
    parts = train_test_split(np.arange(len(labels)), test_size=450, stratify=labels, random_state=0)
    names = tuple("0123456789")
    train, test = (ImageSet(images[i], labels[i], labels[i], names, "digits") for i in map(np.sort, parts))
    return Dataset(train, test)
