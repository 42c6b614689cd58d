"""What a distilled set must beat: small sets of real training images, chosen without any matching; and stopping early.

`random`: random images of each observed class with their observed (hard) labels. `random_soft`: the same images with
the experts' soft labels. `predicted`: random images that an expert predicts as their observed label, hard labels.
`early_stopped`: a network of the full noisy set after the epoch that noisy validation labels choose; no cells of its
own, since the records of the full noisy set have its accuracy.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ddlnl import networks, training
from ddlnl.datasets import ImageSet
from ddlnl.generators import numpy_generator
from ddlnl.preprocess import Preprocessing, to_float

METHODS = ("random", "random_soft", "predicted")
EARLY_STOPPED = "early_stopped"


def with_early_stopping(table: pd.DataFrame) -> pd.DataFrame:
    """A table of records and, for each of the full noisy set, a row `early_stopped`: what the rule `validation` chose
    of it, under every rule."""
    rows = table[table["method"] == "full"].assign(method=EARLY_STOPPED)
    for rule in ("last", "best_on_test"):
        for number in ("accuracy", "accuracies", "std"):
            rows[f"{number}_{rule}"] = rows[f"{number}_validation"]
    return pd.concat([table, rows], ignore_index=True)


def expert_logits(experts: Tensor, network: nn.Module, images: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """(M, N, K) logits of M experts, flat parameters (M, P), on uint8 images (N, H, W, C)."""
    with torch.no_grad():
        batches = [preprocessing.apply(to_float(images[start : start + 500])) for start in range(0, len(images), 500)]
        each = [networks.unflatten(expert, network) for expert in experts]
        return torch.stack(
            [torch.cat([functional_call(network, p, (b.to(experts.device),)) for b in batches]) for p in each]
        )


def choose(
    train: ImageSet,
    method: str,
    ipc: int,
    experts: Tensor | None,
    network: nn.Module,
    preprocessing: Preprocessing,
    seed: int,
) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Images (K ipc, C, H, W) float32 in [0, 1], class-major; their labels (K ipc, K); and what there is to report.

    experts: (M, P) flat trained parameters; `predicted` uses the first, `random_soft` the mean logits of all. A class
    with fewer than ipc images predicted as observed is filled up with random ones, counted in the report as
    `filled_up`.
    """
    agreed = np.zeros(len(train), dtype=bool)
    if method == "predicted":
        agreed = (
            expert_logits(experts[:1], network, train.images, preprocessing)[0].argmax(1).cpu().numpy()
            == train.observed
        )
    chosen, report = [], {}
    for label in range(train.num_classes):
        order = numpy_generator(seed, "random images", label).permutation(np.flatnonzero(train.observed == label))
        order = np.concatenate([order[agreed[order]], order[~agreed[order]]])[:ipc]  # those predicted as observed first
        chosen.append(order)
    index = np.concatenate(chosen)
    if method == "predicted":
        report = {"filled_up": int((~agreed[index]).sum())}
    labels = training.one_hot(torch.from_numpy(train.observed[index]), train.num_classes)
    if method == "random_soft":
        labels = F.softmax(expert_logits(experts, network, train.images[index], preprocessing).mean(0), 1).cpu()
    report["wrong_labels"] = int((train.observed[index] != train.clean[index]).sum())
    return to_float(train.images[index]), labels, report
