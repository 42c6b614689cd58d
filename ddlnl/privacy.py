"""How well an outsider can tell which images a model or a distilled set was made from: membership inference (claim C6).

Two attacks, each a score that is larger for likelier members: the negative loss of a model on an image with its label
(Yeom et al., CSF 2018: one threshold for all images, no shadow models), and the nearness of an image to the released
images. Both say how much is told at least: an attack that fails proves no privacy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_curve
from torch import Tensor

from ddlnl.errors import InputError
from ddlnl.generators import numpy_generator

RATES = (0.001, 0.01)  # false-positive rates: what counts is whom an attack finds surely (Carlini et al., S&P 2022)
LEVEL = 0.95


@dataclass(frozen=True)
class Leakage:
    """What an attack reaches; every interval is a percentile interval of the bootstrap at `LEVEL`.

    auc: area under the ROC curve, 0.5 for guessing. tpr: for each false-positive rate asked for the share of members
    found at no more than that rate; guessing finds the rate itself. members, others: how many images of each.
    """

    auc: float
    auc_interval: tuple[float, float]
    tpr: dict[float, float]
    tpr_intervals: dict[float, tuple[float, float]]
    members: int
    others: int


def loss_scores(logits: Tensor, labels: Tensor) -> np.ndarray:
    """(N,) float64 negative cross-entropy of one model's logits (N, K), or of the mean over M models' (M, N, K).

    labels: (N,) int64 as the training set had them, wrong ones included: that is what a member is.
    """
    stacked = logits if logits.dim() == 3 else logits[None]
    losses = [F.cross_entropy(one.double(), labels, reduction="none") for one in stacked]
    return -torch.stack(losses).mean(0).cpu().numpy()


def nearness_scores(images: Tensor, released: Tensor) -> np.ndarray:
    """(N,) float64 negative Euclidean distance of images (N, C, H, W) to the nearest of the released ones (n, C, H, W).

    Both must be in one space: preprocessed as the released images are used. For a multi-formation set these are the
    decoded images of `DistilledSet.training_set`.
    """
    if images.shape[1:] != released.shape[1:]:
        raise InputError(
            f"The images have the shape {tuple(images.shape[1:])} and the released ones {tuple(released.shape[1:])}; "
            "both must be the same."
        )
    flat = released.flatten(1).double()
    parts = [torch.cdist(part.flatten(1).double(), flat).amin(1) for part in images.split(1000)]
    return -torch.cat(parts).cpu().numpy()


def leakage(
    members: np.ndarray, others: np.ndarray, repeats: int = 1000, seed: int = 0, rates: Sequence[float] = RATES
) -> Leakage:
    """How well scores tell members (n,) from other images (m,), with bootstrap intervals over both.

    rates: the false-positive rates at which members are counted, `RATES` or those of them that so many others can show.
    The others must differ from the members in nothing but membership: held-out images with labels made in the same way,
    since an attack on noisy members and clean others would find the noise. Raises `InputError` where a side has fewer
    images than the smallest false-positive rate can show, or a score is not finite.
    """
    needed = round(1 / min(rates, default=1))
    if len(members) == 0 or len(others) < needed:
        raise InputError(
            f"There are {len(members)} members and {len(others)} other images; a false-positive rate of "
            f"{min(rates, default=1):.1%} takes at least one member and {needed} others."
        )
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise InputError("Some scores are not finite; every image needs a number as its score.")
    source = numpy_generator(seed, "bootstrap")
    drawn = [
        _measured(source.choice(members, len(members)), source.choice(others, len(others)), rates)
        for _ in range(repeats)
    ]
    tails = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)
    low, high = np.percentile(drawn, tails, axis=0)
    auc, *tpr = _measured(members, others, rates)
    intervals = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    found, bounds = (dict(zip(rates, each, strict=True)) for each in (tpr, intervals[1:]))
    return Leakage(auc, intervals[0], found, bounds, len(members), len(others))


def _measured(members: np.ndarray, others: np.ndarray, rates: Sequence[float]) -> list[float]:
    """The area, and the share of members found at each of the rates."""
    truth = np.repeat([1, 0], [len(members), len(others)])
    false, true, _ = roc_curve(truth, np.concatenate([members, others]), drop_intermediate=False)
    within = [true[false <= rate].max() for rate in rates]
    return [float(np.trapezoid(true, false)), *map(float, within)]
