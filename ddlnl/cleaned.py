"""Cleaning before training: a noisy set without the images whose label confident learning suspects.

What a distilled set has to beat where somebody would otherwise clean first, and what DANCE makes of a cleaned set.
Suspected images are dropped, as cleanlab's own `CleanLearning` does: `find_label_issues` says which labels are wrong,
not what should stand in their place. Only observed labels are used.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddlnl import cleaning, methods, training
from ddlnl.datasets import ImageSet
from ddlnl.errors import InputError
from ddlnl.training import Protocol


def methods_here() -> tuple[str, ...]:
    """The methods that clean first, as far as this installation has what they need: all or none."""
    return methods.CLEANED if cleaning.installed() else ()


def left_out() -> tuple[str, ...]:
    """What is missing without cleanlab, in words for a reader."""
    said = "no confident learning before training: cleanlab is not installed (`pip install cleanlab`)"
    return () if cleaning.installed() else (said,)


def check(train: ImageSet) -> None:
    """Raise `InputError` unless cleanlab is installed and every observed class has an image for each fold."""
    cleaning.require_cleanlab()
    counts = np.bincount(train.observed, minlength=train.num_classes)
    if counts.min() < cleaning.FOLDS:
        rarest = train.class_names[int(counts.argmin())]
        raise InputError(
            f"There are {counts.min()} training images with label {rarest!r} in {train.name} ({train.noise}), and "
            f"confident learning in cross-validation takes at least {cleaning.FOLDS} of every class."
        )


def find(
    images: Tensor, targets: Tensor, full: Protocol, seed: int, progress: training.Progress | None = None
) -> dict[str, Tensor]:
    """Confident learning on preprocessed images (N, C, H, W) with observed labels as targets (N, K).

    Returns `suspected` (S,) and `ranking` (N,) int64, as in `cleaning.Issues`. full: how the networks of the
    cross-validation are trained.
    """
    probabilities = cleaning.cross_validated(images, targets, full, seed, progress=progress)
    issues = cleaning.confident_learning(targets.argmax(1).cpu().numpy(), probabilities)
    return {name: torch.from_numpy(getattr(issues, name).astype(np.int64)) for name in ("suspected", "ranking")}


def keep(train: ImageSet, suspected: np.ndarray, ranking: np.ndarray, least: int) -> tuple[ImageSet, dict[str, int]]:
    """`train` without the suspected images, and what there is to report.

    A class with fewer than `least` images left gets back its least doubtful suspects, counted as `filled_up`. The
    report counts the images `dropped` and the wrong labels before and after, which nothing else looks at.
    """
    kept = np.ones(len(train), dtype=bool)
    kept[suspected] = False
    clear = int(kept.sum())
    for label in range(train.num_classes):
        back = [image for image in ranking[::-1] if train.observed[image] == label and not kept[image]]
        kept[back[: max(0, least - int(kept[train.observed == label].sum()))]] = True
    wrong = train.observed != train.clean
    report = {"dropped": int((~kept).sum()), "filled_up": int(kept.sum()) - clear}
    report |= {"wrong_before": int(wrong.sum()), "wrong_after": int(wrong[kept].sum())}
    return train.subset(np.flatnonzero(kept)), report
