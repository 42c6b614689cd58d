"""The cleaning baseline that distillation must beat: confident learning first, then distil what is left.

Confident learning (Northcutt et al., JAIR 2021) is cleanlab's, an optional dependency: `pip install 'ddlnl[study]'`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddlnl import training
from ddlnl.datasets import ImageSet
from ddlnl.errors import InputError
from ddlnl.generators import derive
from ddlnl.training import Protocol

FOLDS = 5  # as cleanlab does by default


def cross_validated(images: Tensor, targets: Tensor, protocol: Protocol, seed: int, folds: int = FOLDS) -> np.ndarray:
    """(N, K) float64 class probabilities of networks that have not seen the images.

    images: (N, C, H, W) preprocessed; targets: (N, K) one-hot observed labels. Each of the stratified folds is
    predicted by one network trained on the others by `protocol`. Raises `InputError` where a class has fewer images
    than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold  # takes a second to import

    labels = targets.argmax(1).cpu().numpy()
    counts = np.bincount(labels, minlength=targets.shape[1])
    if not 2 <= folds <= counts.min():
        raise InputError(f"There are {folds} folds; allowed are 2 to {counts.min()}, the size of the smallest class.")
    classes, channels, size = targets.shape[1], images.shape[1], images.shape[-1]
    found = np.empty((len(labels), classes))
    split = StratifiedKFold(folds, shuffle=True, random_state=derive(seed, "folds") % 2**32)
    for fold, (seen, unseen) in enumerate(split.split(labels, labels)):
        seeds = [derive(seed, "fold", fold)]
        stack = training.initialise(lambda: protocol.architecture.build(classes, size, channels), seeds, images.device)
        training.train(stack, images[seen], targets[seen], protocol.recipe_for(len(seen)), seeds)
        logits = training.predict(stack, images[torch.from_numpy(unseen).to(images.device)])
        found[unseen] = logits[0].double().softmax(1).cpu().numpy()
    return found


def without_errors(train: ImageSet, probabilities: np.ndarray) -> ImageSet:
    """The training set without the images whose label cleanlab finds wrong, by out-of-sample probabilities (N, K).

    As `cleanlab.filter.find_label_issues` prunes by default; a class keeps at least one image. Raises `InputError`
    where cleanlab is not installed.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise InputError("Cleaning needs cleanlab; install it with `pip install 'ddlnl[study]'`.") from error
    wrong = find_label_issues(train.observed, probabilities, n_jobs=1, min_examples_per_class=1)
    return train.subset(~wrong)
