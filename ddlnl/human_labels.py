"""Import of the CIFAR-N human labels (arXiv 2110.12088) into the archives of CIFAR-10 and CIFAR-100.

The published label files are pickles, which can run any code when they are loaded, so they are read by `torch_file`
instead. The labels are for non-commercial use (CC BY-NC 4.0) and therefore come from the user's own copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddlnl import archives, sources, torch_file
from ddlnl.datasets import load
from ddlnl.errors import InputError
from ddlnl.places import path_of

# Dataset: {key in the published file: name of the label set here}.
LABEL_SETS = {
    "cifar10": {
        "aggre_label": "aggre",
        "random_label1": "random1",
        "random_label2": "random2",
        "random_label3": "random3",
        "worse_label": "worst",
    },
    "cifar100": {"noisy_label": "noisy_fine"},
}
PUBLISHED = {
    "cifar10": "873e69c39cb9b5e97fb6bae2d60bb59b38a5cbc31d2b868f7903dcb2b9dd2310",
    "cifar100": "bd2d80409754d420292d622e15e25248ba21e37d27429efac49c8da723f44394",
}


@dataclass(frozen=True)
class Imported:
    """What was imported: into which archive, the share of wrong labels of each set, and from which file."""

    path: Path
    rates: Mapping[str, float]
    sha256: str
    published: bool  # whether the file is byte for byte the published one


def import_cifar_n(label_file: str | Path, data_dir: str | Path | None = None) -> Imported:
    """Add the label sets of `CIFAR-10_human.pt` or `CIFAR-100_human.pt` to the archive of their dataset.

    The archive is looked up, or downloaded, as by `datasets.load`, and replaced atomically; it also keeps the file's
    SHA-256 under `human_labels_sha256`. Raises `InputError` where the file is not one of the two, holds anything but
    labels, or where its clean labels differ from the dataset's in any image, which means another order of the images.
    """
    label_file = path_of(label_file, "label file")
    if not label_file.is_file():
        raise InputError(f"{label_file} does not exist; the label files are CIFAR-10_human.pt and CIFAR-100_human.pt.")
    content = torch_file.read(label_file)
    name = next((name for name, keys in LABEL_SETS.items() if content.keys() >= {"clean_label", *keys}), None)
    if name is None:
        known = " or ".join(", ".join(keys) for keys in LABEL_SETS.values())
        raise InputError(f"{label_file} is not a CIFAR-N label file; one has clean_label and {known}.")
    path = sources.fetch(name, data_dir)
    train = load(path).train
    clean = _labels(content["clean_label"], train.clean, train.num_classes, f"clean_label in {label_file}")
    wrong = int((clean != train.clean).sum())
    if wrong:
        raise InputError(f"{label_file} is in another order than {path}: {wrong} clean labels differ, and none may.")
    human = {
        label_set: _labels(content[key], train.clean, train.num_classes, f"{key} in {label_file}")
        for key, label_set in LABEL_SETS[name].items()
    }
    sha256 = hashlib.sha256(label_file.read_bytes()).hexdigest()
    added = {archives.HUMAN + label_set: labels for label_set, labels in human.items()}
    archives.write(path, archives.read(path, others=True) | added | {"human_labels_sha256": np.array(sha256)})
    rates = {label_set: float((labels != train.clean).mean()) for label_set, labels in human.items()}
    return Imported(path, rates, sha256, sha256 == PUBLISHED[name])


def _labels(given: object, clean: np.ndarray, classes: int, what: str) -> np.ndarray:
    """Labels of the file as int64, one for each of the `clean` ones and in 0..classes-1."""
    numbers = isinstance(given, np.ndarray) or (isinstance(given, list) and all(type(label) is int for label in given))
    labels = np.asarray(given if numbers else [])
    if labels.shape != clean.shape or not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(f"{what} must be {len(clean)} whole numbers from 0 to {classes - 1}, one per training image.")
    return labels.astype(np.int64)
