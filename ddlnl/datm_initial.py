"""Where DATM starts: real images as whitened pixels, and logits of experts as soft labels.

Under noise the choice "predicted" is a filter by itself: it keeps images whose observed label an expert agrees with. So
the set before the first update is always evaluated.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddlnl import networks
from ddlnl.datasets import ImageSet
from ddlnl.generators import numpy_generator
from ddlnl.preprocess import Preprocessing, to_float

_SCAN = 256  # images per call of an expert while searching, as published


class Initial(NamedTuple):
    """images (K ipc, C, H, W) preprocessed, class-major; logits (K ipc, K); and what there is to report."""

    images: Tensor
    logits: Tensor
    report: dict[str, int]


class Experts:
    """Final parameters of E experts (E, P) as classifiers."""

    def __init__(self, finals: Tensor, network: nn.Module, preprocessing: Preprocessing) -> None:
        self.finals, self.network, self.preprocessing = finals, network, preprocessing

    def __len__(self) -> int:
        return len(self.finals)

    def preprocessed(self, images: np.ndarray) -> Tensor:
        """uint8 (N, H, W, C) images as `logits` takes them, on the device of the experts."""
        return self.preprocessing.apply(to_float(images).to(self.finals.device))

    @torch.no_grad()
    def logits(self, expert: int, images: Tensor) -> Tensor:
        """(N, K) logits on preprocessed (N, C, H, W) images."""
        parameters = networks.unflatten(self.finals[expert], self.network)
        return torch.cat([functional_call(self.network, parameters, (part,)) for part in images.split(_SCAN)])


def initial_set(
    train: ImageSet,
    ipc: int,
    initialisation: str,
    finals: Tensor,
    network: nn.Module,
    preprocessing: Preprocessing,
    seed: int,
) -> Initial:
    """Choose `ipc` images of every observed class and their first soft labels.

    "predicted": images of a random order that expert 0 predicts as their observed label; where a class has too few,
    those that experts 1, 2, ... predict so; where all experts leave it short, any (reported as `filled_up`). Logits are
    the mean over the experts that predict the image as its class, over all experts where none does (reported as
    `without_agreement`). "real": random images; logits of one random expert.
    """
    experts = Experts(finals, network, preprocessing)
    chosen, filled = [], 0
    for label in range(train.num_classes):
        order = numpy_generator(seed, "initial images", label).permutation(np.flatnonzero(train.observed == label))
        if initialisation == "predicted":
            agreed = _agreed(train, order, label, ipc, experts)
            filled += ipc - len(agreed)
            order = np.concatenate([agreed, order[~np.isin(order, agreed)]])
        chosen.append(order[:ipc])
    index = np.concatenate(chosen)
    images, labels = experts.preprocessed(train.images[index]), torch.from_numpy(train.observed[index])
    report = {"wrong_labels": int((train.observed[index] != train.clean[index]).sum())}
    if initialisation == "predicted":
        logits, without = _mean_of_agreeing(images, labels, experts)
        report |= {"filled_up": filled, "without_agreement": without}
    else:
        logits = experts.logits(int(numpy_generator(seed, "label expert").integers(len(experts))), images)
    return Initial(images.cpu(), logits.cpu(), report)


def _agreed(train: ImageSet, order: np.ndarray, label: int, ipc: int, experts: Experts) -> np.ndarray:
    """At most `ipc` indices from `order` that some expert predicts as `label`, earlier experts and images first."""
    found: list[int] = []  # places in `order`
    parts = np.split(np.arange(len(order)), range(_SCAN, len(order), _SCAN))
    inputs: list[Tensor] = []  # preprocessed as far as the search has come, once for all experts
    for expert in range(len(experts)):
        for at, part in enumerate(parts):
            if at == len(inputs):
                inputs.append(experts.preprocessed(train.images[order[part]]))
            agrees = (experts.logits(expert, inputs[at]).argmax(1) == label).cpu().numpy()
            found += [place for place in part[agrees].tolist() if place not in found]
            if len(found) >= ipc:
                return order[found[:ipc]]
    return order[found]


def _mean_of_agreeing(images: Tensor, labels: Tensor, experts: Experts) -> tuple[Tensor, int]:
    """(N, K) mean logits of the experts that predict `labels` (N,), and for how many images there is no such expert."""
    total = agreeing = everyone = 0
    labels = labels.to(experts.finals.device)
    for expert in range(len(experts)):
        logits = experts.logits(expert, images)
        agrees = (logits.argmax(1) == labels)[:, None]
        total, agreeing, everyone = total + logits * agrees, agreeing + agrees.long(), everyone + logits
    mean = torch.where(agreeing > 0, total / agreeing.clamp(min=1), everyone / len(experts))
    return mean, int((agreeing == 0).sum())
