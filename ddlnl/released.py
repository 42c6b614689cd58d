"""Released distilled sets of other people as `DistilledSet`s, in the space and with the protocol they were made for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ddlnl import datasets, datm_import, preprocess, rcig_evaluation, rcig_import
from ddlnl.datasets import Dataset
from ddlnl.distilled import DistilledSet, Protocol
from ddlnl.errors import InputError
from ddlnl.profiles import PROFILES


def rcig(checkpoint: str | Path, dataset: str, data_dir: str | Path | None = None) -> DistilledSet:
    """The moving average in a flax checkpoint of RCIG's code, with the published protocol of the dataset.

    The whitening is not in the checkpoint and is fitted again on the training images of `dataset`. Raises `InputError`
    where the file holds no such set, or one that does not fit the dataset or has no published protocol.
    """
    found = rcig_import.read(checkpoint)
    data = datasets.load(dataset, data_dir)
    ipc = _ipc(found.images, found.labels, data, checkpoint)
    protocol = rcig_evaluation.published_protocol(data.name, ipc)
    return _distilled(found.images, found.labels, data, "rcig", ipc, protocol)


def datm(folder: str | Path, dataset: str, data_dir: str | Path | None = None) -> DistilledSet:
    """The set that DATM's code left in a folder, with the published protocol at the learned step size.

    Labels are the softmax of the learned logits; the whitening is fitted again on the training images of `dataset`.
    Raises `InputError` where the folder holds no such set, or one that does not fit the dataset.
    """
    found = datm_import.read(folder)
    data = datasets.load(dataset, data_dir)
    ipc = _ipc(found.images, found.logits, data, folder)
    student = PROFILES["paper"].for_dataset(data.name, data.train.images.shape[1]).datm.student
    protocol = replace(student, recipe=replace(student.recipe, lr=found.step_size))
    return _distilled(found.images, found.logits.softmax(1), data, "datm", ipc, protocol)


def _ipc(images: Tensor, labels: Tensor, data: Dataset, place: str | Path) -> int:
    height, width, channels = data.train.images.shape[1:]
    classes, extra = data.train.num_classes, len(images) % data.train.num_classes
    if images.shape[1:] != (channels, height, width) or labels.shape[1] != classes or extra:
        raise InputError(
            f"{place} holds {len(images)} images {tuple(images.shape[1:])} of {labels.shape[1]} classes, which is no "
            f"set of {data.name}; that has images {(channels, height, width)}, as many for each of {classes} classes."
        )
    return len(images) // classes


def _distilled(
    images: Tensor, labels: Tensor, data: Dataset, method: str, ipc: int, protocol: Protocol
) -> DistilledSet:
    kind = PROFILES["paper"].preprocessing_for(method)
    fitted = preprocess.fit(data.train.images, kind, data.name)
    names = data.train.class_names
    return DistilledSet(images, labels, names, method, ipc, fitted, protocol, preprocessed=True)
