"""Confident learning (Northcutt et al., JAIR 2021), the way to find label errors that a denoiser has to beat.

Networks of the full noisy set's protocol predict the images that they were not trained on, in cross-validation, and
cleanlab says from these probabilities which labels are wrong.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from ddlnl import evaluation, measure, methods, training
from ddlnl.denoised import Report
from ddlnl.errors import InputError
from ddlnl.generators import derive, numpy_generator
from ddlnl.profiles import PROFILES
from ddlnl.training import Objective, Protocol

FOLDS = 5
FILTER = "prune_by_noise_rate"  # cleanlab's default: of every pair of classes as many as their joint distribution says
OURS, THEIRS = "students of the other half", "confident learning"


class LeftOut(Objective):
    """Cross-entropy on all images but those of a network's own part: network m learns nothing from images of part m.

    part: (N,) int64.
    """

    def __init__(self, part: Tensor) -> None:
        self.part = part

    def __call__(self, logits: Tensor, targets: Tensor, index: Tensor, epoch: int) -> Tensor:
        own = torch.arange(len(index), device=index.device)[:, None]
        seen = (self.part[index] != own).to(logits)
        losses = -(targets * logits.log_softmax(2)).sum(2)
        return ((losses * seen).sum(1) / seen.sum(1).clamp(min=1)).sum()


def cross_validated(
    images: Tensor,
    targets: Tensor,
    protocol: Protocol,
    seed: int,
    folds: int = FOLDS,
    progress: training.Progress | None = None,
) -> np.ndarray:
    """(N, K) float64 probabilities of each class, each image's from the network that was not trained on it.

    Args:
        images, targets: (N, C, H, W) preprocessed float32, (N, K) float32 one-hot observed labels.
        protocol: that of the full noisy set, followed without CutMix, which would mix labels across the parts.
        folds: parts, of about equal size in every observed class.
        progress: where to resume from.

    Raises `InputError` where a class has fewer images than there are parts.
    """
    observed = targets.argmax(1).cpu().numpy()
    part = torch.from_numpy(parts(observed, folds, seed)).to(images.device)
    recipe = replace(protocol.recipe_for(len(images)), cutmix=0.0)
    classes, channels, size = targets.shape[1], images.shape[1], images.shape[-1]
    seeds = [derive(seed, "fold", fold) for fold in range(folds)]
    stack = training.initialise(lambda: protocol.architecture.build(classes, size, channels), seeds, images.device)
    training.train(stack, images, targets, recipe, seeds, progress=progress, objective=LeftOut(part))
    every = training.predict(stack, images).softmax(2)
    return every[part, torch.arange(len(images), device=images.device)].double().cpu().numpy()


def parts(observed: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(N,) int64: which of `folds` parts an image is in; every observed class is spread evenly."""
    counts = np.bincount(observed)
    if not 2 <= folds <= counts[counts > 0].min():
        raise InputError(
            f"The number of folds is {folds}, and it must be from 2 to {counts[counts > 0].min()}, the images of the "
            "smallest class."
        )
    source, part = numpy_generator(seed, "folds"), np.empty(len(observed), np.int64)
    for label in np.flatnonzero(counts):
        own = source.permutation(np.flatnonzero(observed == label))
        part[own] = np.arange(len(own)) % folds
    return part


@dataclass(frozen=True, eq=False)
class Issues:
    """What confident learning says: `suspected`, indices of likely wrong labels, and `ranking`, all (N,) images, the
    most doubtful label first (self-confidence)."""

    suspected: np.ndarray
    ranking: np.ndarray


def installed() -> bool:
    """Whether cleanlab is there; it is an optional dependency."""
    return importlib.util.find_spec("cleanlab") is not None


def require_cleanlab() -> None:
    """Raise `InputError` where cleanlab is not installed."""
    if not installed():
        raise InputError("Confident learning needs cleanlab; install it with `pip install cleanlab`.")


def confident_learning(observed: np.ndarray, probabilities: np.ndarray) -> Issues:
    """cleanlab's answer, with its default settings (`FILTER`), to observed labels (N,) int64 and probabilities (N, K).

    Raises `InputError` where cleanlab is not installed.
    """
    require_cleanlab()
    from cleanlab import filter as cleanlab_filter
    from cleanlab import rank

    suspected = cleanlab_filter.find_label_issues(observed, probabilities, filter_by=FILTER, n_jobs=1)
    scores = rank.get_label_quality_scores(observed, probabilities, method="self_confidence")
    ranking = np.argsort(scores, kind="stable")
    return Issues(ranking[suspected[ranking]], ranking)


def issues_in(report: Report, folds: int = FOLDS, device: str = "auto") -> Issues:
    """Confident learning on the images, with the profile and the seed, of a report of `ddlnl.denoise`."""
    train, chosen, seed = report.images.train, PROFILES[report.settings["profile"]], report.settings["seed"]
    chosen = chosen.for_dataset(train.name, train.images.shape[1])
    tensors = methods.training_tensors(train, report.small.preprocessing, evaluation.choose_device(device))
    with measure.at_most_threads(chosen.threads):
        probabilities = cross_validated(*tensors, chosen.full, seed, folds)
    return confident_learning(train.observed, probabilities)


def compare(report: Report, issues: Issues, clean: np.ndarray) -> pd.DataFrame:
    """The suspicions of a report beside confident learning's, where the true labels (N,) int64 are known.

    A row for each of the two at each number of images that one of them suspects: `found_by`, `flagged`, `precision` and
    `recall` of so many most doubtful labels, and the `average_precision` of its whole ranking, as shares of 1. What
    confident learning suspects by itself is not the top of its ranking, so it has a row of its own.
    """
    wrong = report.found.given != clean
    rankings = {OURS: report.found.ranking, THEIRS: issues.ranking}
    chosen = {f"{THEIRS}, as it chooses": issues.suspected, OURS: report.found.suspected}
    rows = [(name, index, float("nan")) for name, index in chosen.items() if name not in rankings]
    for name, ranking in rankings.items():
        order = np.empty(len(ranking))
        order[ranking] = -np.arange(len(ranking))
        average = average_precision_score(wrong, order)
        rows += [(name, ranking[:count], average) for count in sorted({len(index) for index in chosen.values()})]
    return pd.DataFrame(
        {
            "found_by": name,
            "flagged": len(index),
            "precision": wrong[index].mean() if len(index) else float("nan"),
            "recall": wrong[index].sum() / max(wrong.sum(), 1),
            "average_precision": average,
        }
        for name, index, average in rows
    )


def beside(report: Report, device: str = "auto") -> pd.DataFrame:
    """Confident learning beside a report: `compare` where the true labels are known, else how many labels each
    suspects and how many both."""
    issues, train = issues_in(report, device=device), report.images.train
    if train.noise != "clean":
        return compare(report, issues, train.clean)
    ours, theirs = set(report.found.suspected), set(issues.suspected)
    counts = {OURS: len(ours), THEIRS: len(theirs), "both": len(ours & theirs)}
    return pd.DataFrame({"found_by": counts.keys(), "flagged": counts.values()})


def readable(comparison: pd.DataFrame) -> str:
    """What `beside` returned, as an HTML table with shares in per cent."""
    shares = [name for name in comparison if name not in ("found_by", "flagged")]
    shown = {name: comparison[name].map(lambda share: "" if np.isnan(share) else f"{share:.1%}") for name in shares}
    return comparison.assign(**shown).to_html(index=False, border=0)
