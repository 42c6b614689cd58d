"""Where RCIG starts: real images with that observed label, and their labels around zero."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddlnl import training
from ddlnl.datasets import ImageSet
from ddlnl.generators import generator, numpy_generator
from ddlnl.preprocess import Preprocessing, to_float

_DEVIATION = 0.3  # of the initialisation "noise"


class Initial(NamedTuple):
    """images (K ipc, C, H, W) preprocessed, class-major; labels (K ipc, K), one-hot minus 1 / K; how many of the images
    belong to another class."""

    images: Tensor
    labels: Tensor
    wrong_labels: int


def initial_set(train: ImageSet, ipc: int, initialisation: str, preprocessing: Preprocessing, seed: int) -> Initial:
    """Choose `ipc` images of every class.

    "real": random images with that observed label, so under noise some belong to another class. "clean": with that
    clean label, which only a study can know. "noise": normal values.
    """
    names = train.clean if initialisation == "clean" else train.observed
    members = [np.flatnonzero(names == label) for label in range(train.num_classes)]
    index = np.concatenate(
        [numpy_generator(seed, "initial images", label).permutation(one)[:ipc] for label, one in enumerate(members)]
    )
    labels = training.one_hot(torch.from_numpy(names[index]), train.num_classes) - 1 / train.num_classes
    images = preprocessing.apply(to_float(train.images[index]))
    if initialisation == "noise":
        source = generator(seed, "initial images")
        return Initial(_DEVIATION * torch.randn(images.shape, generator=source), labels, 0)
    return Initial(images, labels, int((names[index] != train.clean[index]).sum()))
