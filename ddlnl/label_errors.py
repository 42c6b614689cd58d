"""From class probabilities to suspected label errors: confident learning (Northcutt et al., JAIR 2021).

The probabilities must be out of sample: those of a model that has not seen the image with its label. Then a class that
looks much more likely than the given one is evidence against the label, and the counts of such images estimate how
often each class is mistaken for each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ddlnl.errors import InputError


@dataclass(frozen=True, eq=False)
class Suspicions:
    """What probabilities (N, K) say about given labels (N,) int64.

    quality: (N,) float64 in [0, 1], small where the label is doubtful (`quality`). suggested: (N,) int64, the class
    that an image shows by its probabilities. suspected: indices of the images counted as errors, most doubtful first.
    joint: (K, K) float64 estimated number of images with each true (row) and given (column) label; sums to N, columns
    to the given labels' counts. transition: (K, K) float64, P(given label | true class), rows sum to one.
    """

    given: np.ndarray
    quality: np.ndarray
    suggested: np.ndarray
    suspected: np.ndarray
    joint: np.ndarray

    @property
    def transition(self) -> np.ndarray:
        return self.joint / self.joint.sum(1, keepdims=True)

    @property
    def ranking(self) -> np.ndarray:
        """(N,) int64: all images, suspected ones first, each part from doubtful to trusted."""
        trusted = np.ones(len(self.given), dtype=bool)
        trusted[self.suspected] = False
        rest = np.flatnonzero(trusted)
        return np.concatenate([self.suspected, rest[np.argsort(self.quality[rest], kind="stable")]])

    @property
    def corrected(self) -> np.ndarray:
        """(N,) int64: the given labels, of suspected images the suggested ones."""
        labels = self.given.copy()
        labels[self.suspected] = self.suggested[self.suspected]
        return labels


def find(probabilities: np.ndarray, given: np.ndarray) -> Suspicions:
    """Confident learning on out-of-sample `probabilities` (N, K) of images with labels `given` (N,) int64.

    An image is counted for the likeliest class among those whose probability reaches the class's threshold, which is
    the mean probability of that class over the images given it: eq. (1) and (2) of the paper. So a class that the model
    always believes little in is not held against its labels. Images counted for another class than theirs are
    suspected, and the counts, scaled so that every given class has its number of images, are the joint. Raises
    `InputError` where the shapes do not match, a row is no distribution, or a class has no image.
    """
    _check(probabilities, given)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    limits = thresholds(probabilities, given)
    counted = _confident_class(probabilities, limits)
    confident = counted >= 0
    joint = np.zeros((len(limits), len(limits)))
    np.add.at(joint, (counted[confident], given[confident]), 1)
    np.fill_diagonal(joint, joint.diagonal().clip(min=1))  # no class is wrong throughout
    joint *= np.bincount(given, minlength=len(limits)) / joint.sum(0)
    score = quality(probabilities, given)
    suspected = np.flatnonzero(confident & (counted != given))
    suspected = suspected[np.argsort(score[suspected], kind="stable")]
    suggested = np.where(confident, counted, probabilities.argmax(1))
    return Suspicions(given, score, suggested, suspected, joint)


def thresholds(probabilities: np.ndarray, given: np.ndarray) -> np.ndarray:
    """(K,) float64: the mean probability of each class over the images given it."""
    own = probabilities[np.arange(len(given)), given]
    counts = np.bincount(given, minlength=probabilities.shape[1])
    return np.bincount(given, own, minlength=probabilities.shape[1]) / counts


def quality(probabilities: np.ndarray, given: np.ndarray) -> np.ndarray:
    """(N,) float64 in [0, 1]: half of one plus the given label's lead over the likeliest other class.

    The normalised margin of Northcutt et al.: 0 where another class is certain, 1 where the given one is.
    """
    rows = np.arange(len(given))
    others = probabilities.copy()
    others[rows, given] = -np.inf
    return (1 + probabilities[rows, given] - others.max(1)) / 2


def _confident_class(probabilities: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(N,) int64: the likeliest class that reaches its threshold, -1 where none does."""
    reached = np.where(probabilities >= limits - 1e-6, probabilities, -1)  # a mean may round to just above its terms
    return np.where(reached.max(1) >= 0, reached.argmax(1), -1)


def _check(probabilities: np.ndarray, given: np.ndarray) -> None:
    if probabilities.ndim != 2 or given.shape != (len(probabilities),):
        raise InputError(
            f"The probabilities have the shape {probabilities.shape} and the labels {given.shape}; they must be (N, K) "
            "and (N,)."
        )
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all()):
        raise InputError("Some probabilities are negative or not finite; every row must be a distribution.")
    if not np.allclose(probabilities.sum(1), 1, atol=1e-3):
        raise InputError("Some rows of the probabilities do not sum to one; every row must be a distribution.")
    classes = probabilities.shape[1]
    if given.min() < 0 or given.max() >= classes:
        raise InputError(
            f"The labels run from {given.min()} to {given.max()}; {classes} classes allow 0 to {classes - 1}."
        )
    empty = np.flatnonzero(np.bincount(given, minlength=classes) == 0)
    if empty.size:
        raise InputError(f"No image has the label {empty[0]}; every class needs at least one.")
