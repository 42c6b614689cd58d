"""Denoise a reader's own images: distil them, and let what was distilled judge the labels.

A student of a distilled set is nearly blind to single labels, but the images that a set began as are not out of its
sample, nor are those that experts have learned by heart. So the images are split into halves, each half is distilled by
itself, and the label of an image is judged by students of the other half. Both small sets together are the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import ddlnl
from ddlnl import datasets, distilled, evaluation, label_errors, measure, methods, own_images, preprocess, training
from ddlnl.datasets import Dataset, ImageSet
from ddlnl.denoised import Report
from ddlnl.distilled import DistilledSet
from ddlnl.errors import InputError
from ddlnl.generators import derive, numpy_generator
from ddlnl.methods import Task
from ddlnl.own_images import OwnImages
from ddlnl.profiles import PROFILES

# RCIG's students regress on free numbers: what they predict are no probabilities to judge labels by.
ALLOWED = tuple(name for name in methods.METHODS if name not in (*methods.WHOLE, *methods.CLEANED, "rcig"))


def denoise(
    data: str | Path | ImageSet | Dataset | OwnImages,
    method: str = "dance",
    ipc: int = 10,
    profile: str = "demo",
    seed: int = 0,
    device: str = "auto",
    size: int | None = None,
    data_dir: str | Path | None = None,
) -> Report:
    """Distil images with noisy labels, and find the labels that are likely wrong.

    Args:
        data: the path of an archive or of a folder of pictures, the name of a dataset (`own_images.load`), or images
            that are loaded already. Of training images the observed labels are used, no others.
        method: a distiller or a control that makes a set, other than "rcig", whose students predict no probabilities.
        ipc: distilled images per class, at least 2: one from each half of the images.
        profile: the settings of networks and distiller.
        size: the side of pictures from a folder, in pixels.

    Returns: a `Report`; the same on one machine with equal arguments.

    Raises `InputError` in one sentence, before any work, where something cannot be: an unknown name, fewer than two
    classes, a class with fewer images than `ipc`, images that are not square.
    """
    methods.check(profile, PROFILES, "profile")
    methods.check(method, ALLOWED, "method")
    place = evaluation.choose_device(device)
    own = _read(data, size, data_dir)
    train = own.train
    methods.check_square(train)
    _check_ipc(train, ipc)
    chosen = PROFILES[profile].for_dataset(train.name, train.images.shape[1])
    sizes = (-(-ipc // 2), ipc // 2)
    if method == "datm":
        for count in sizes:
            chosen.datm.settings_for(train.name, train.noise, count)  # refuses before any work where there are none
    preprocessing = preprocess.fit(train.images, chosen.preprocessing_for(method), train.name)
    parts = halves(train.observed, seed)
    tasks = [
        Task(method, train.subset(part), count, chosen, preprocessing, derive(seed, "half", half), place)
        for half, (part, count) in enumerate(zip(parts, sizes, strict=True))
    ]
    with measure.at_most_threads(chosen.threads):
        small_sets, logits = [], np.empty((chosen.students, len(train), train.num_classes))
        for task, others in zip(tqdm(tasks, "halves", disable=None), parts[::-1], strict=True):
            small_sets.append(methods.final_set(task))
            logits[:, others] = judge(small_sets[-1], train.subset(others), task)
        small = together(small_sets, ipc)
        accuracies: list[float] = []
        if own.test is not None:
            accuracies = evaluation.evaluate(small, own.test, chosen.students, seed=seed, device=device).accuracies
    found = label_errors.find(logits, train.observed)
    return Report(own, small, found, accuracies, _settings(train, method, ipc, profile, seed))


def _settings(train: ImageSet, method: str, ipc: int, profile: str, seed: int) -> dict[str, object]:
    """How a report was made, for reading and for repeating it."""
    return {
        "data": f"{train.name}, {len(train)} training images, hash {train.fingerprint[:16]}",
        "labels": f"hash {datasets.label_hash(train.observed)}",
        "method": method,
        "ipc": ipc,
        "profile": profile,
        "seed": seed,
        "transition": "maximum likelihood of the given labels under predictions of the other half's students",
        "versions": f"ddlnl {ddlnl.__version__}, torch {torch.__version__}",
    }


def _read(
    data: str | Path | ImageSet | Dataset | OwnImages, size: int | None, data_dir: str | Path | None
) -> OwnImages:
    if isinstance(data, (str, Path)):
        return own_images.load(data, size, data_dir)
    if isinstance(data, OwnImages):
        return data
    train, test = (data.train, data.test) if isinstance(data, Dataset) else (data, None)
    return OwnImages(train, test, tuple(map(str, range(len(train)))))


def _check_ipc(train: ImageSet, ipc: int) -> None:
    """Every observed class must give each half its share of `ipc`."""
    counts = np.bincount(train.observed, minlength=train.num_classes)
    rarest = train.class_names[counts.argmin()]
    if counts.min() < 2:
        raise InputError(f"The class {rarest!r} has {counts.min()} training images, and every class needs at least 2.")
    most = int(counts.min()) // 2 * 2
    if not methods.is_whole(ipc) or not 2 <= ipc <= most:
        raise InputError(
            f"The IPC is {ipc!r}, and it must be a whole number from 2 to {most}: each half of the images gives half "
            f"of it, and the class {rarest!r} has {counts.min()}."
        )


def halves(observed: np.ndarray, seed: int) -> list[np.ndarray]:
    """Two sorted arrays of indices that are all of (N,) labels; of every class each has half, to one image."""
    source = numpy_generator(seed, "halves")
    shuffled = [source.permutation(np.flatnonzero(observed == label)) for label in np.unique(observed)]
    return [np.sort(np.concatenate([own[half::2] for own in shuffled])) for half in (0, 1)]


def judge(small: DistilledSet, images: ImageSet, task: Task) -> np.ndarray:
    """(M, N, K) float32 logits of the profile's M fresh students of a small set on images that it was not made from."""
    training_set = (tensor.to(task.device) for tensor in small.training_set())
    seeds = evaluation.student_seeds(task.seed, task.profile.students)
    students = evaluation.trained(*training_set, small.protocol, seeds)
    inputs = evaluation.on_device(images, small.preprocessing, task.device)
    return training.predict(students, inputs).cpu().numpy()


def together(small_sets: Sequence[DistilledSet], ipc: int) -> DistilledSet:
    """One set with the images of all, class-major like each of them, `ipc` per class in all."""
    joined, classes = distilled.concatenate(small_sets), len(small_sets[0].class_names)
    starts = np.cumsum([0, *(len(one) for one in small_sets[:-1])])
    places = [
        start + label * one.ipc + torch.arange(one.ipc)
        for label in range(classes)
        for start, one in zip(starts, small_sets, strict=True)
    ]
    order = torch.cat(places)
    return replace(joined, images=joined.images[order], labels=joined.labels[order], ipc=ipc)
