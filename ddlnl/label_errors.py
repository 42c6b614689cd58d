"""From a classifier's predictions to suspected label errors, through a noise channel fitted by maximum likelihood.

What an image shows, k, is drawn from a classifier's p(k | x), and its label, y, from row k of a transition matrix T
that all images share:

    P(y | x) = sum_k p(k | x; tau) T[k, y],    p(. | x; tau) = mean over networks of softmax(logits / tau).

T is fitted to the given labels by expectation maximisation (Dawid & Skene 1979; as the noise adaptation layer of
Goldberger & Ben-Reuven, ICLR 2017, but after training), the temperature tau by the same likelihood. Bayes' rule then
gives P(k | x, y), how likely each class is given the image and its label. Students of a distilled set suit it: they
learned from labels without noise, so what they predict is meant as what an image shows. The logits must be of networks
that have not seen the images with their labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from ddlnl.errors import InputError

TEMPERATURES = (0.25, 8.0)  # between which tau is sought
START = 0.7  # of T's diagonal
PRIOR = 1.0  # images of every class known to be labelled rightly, so that no row of T is empty
TOLERANCE, STEPS = 1e-4, 500


@dataclass(frozen=True, eq=False)
class Suspicions:
    """What a classifier says about labels.

    given: (N,) int64. posterior: (N, K) float64, P(true class | image, given label). transition: (K, K) float64,
    estimated P(given label | true class), rows sum to one. temperature: tau.
    """

    given: np.ndarray
    posterior: np.ndarray
    transition: np.ndarray
    temperature: float

    @property
    def quality(self) -> np.ndarray:
        """(N,) float64: the probability that a given label is right."""
        return self.posterior[np.arange(len(self.given)), self.given]

    @property
    def corrected(self) -> np.ndarray:
        """(N,) int64: the likeliest class, the given one where it is among the likeliest."""
        best = self.posterior.argmax(1)
        return np.where(self.quality >= self.posterior.max(1), self.given, best)

    @property
    def alternative(self) -> np.ndarray:
        """(N,) int64: the likeliest class other than the given one."""
        others = self.posterior.copy()
        others[np.arange(len(self.given)), self.given] = -1
        return others.argmax(1)

    @property
    def ranking(self) -> np.ndarray:
        """(N,) int64: all images, the most doubtful label first."""
        return np.argsort(self.quality, kind="stable")

    @property
    def suspected(self) -> np.ndarray:
        """Indices of the images for which another class than the given one is the likeliest, most doubtful first."""
        ranking = self.ranking
        return ranking[(self.corrected != self.given)[ranking]]

    @property
    def expected_precision(self) -> float:
        """The share of suspected labels that are wrong, if the model holds; NaN where none is suspected."""
        doubts = 1 - self.quality[self.suspected]
        return float(doubts.mean()) if len(doubts) else float("nan")


def find(logits: np.ndarray, given: np.ndarray) -> Suspicions:
    """Fit the channel to logits (M, N, K) of M networks and given labels (N,) int64.

    Raises `InputError` where the shapes do not match, a logit is not finite, or a class has no image.
    """
    _check(logits, given)
    logits = logits.astype(np.float64)

    def cost(log_temperature: float) -> float:
        return -fit(predictions(logits, float(np.exp(log_temperature))), given)[1]

    found = optimize.minimize_scalar(cost, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 0.05})
    temperature = float(np.exp(found.x))
    shown = predictions(logits, temperature)
    transition, _ = fit(shown, given)
    weights = shown * transition[:, given].T
    return Suspicions(given, weights / weights.sum(1, keepdims=True), transition, temperature)


def predictions(logits: np.ndarray, temperature: float) -> np.ndarray:
    """(N, K) float64: p(k | x; tau), nowhere zero so that no label is impossible."""
    shown = special.softmax(logits / temperature, axis=2).mean(0).clip(min=1e-12)
    return shown / shown.sum(1, keepdims=True)


def fit(shown: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, float]:
    """The transition matrix (K, K) that maximises the likelihood of labels (N,) under predictions (N, K), and the mean
    log-likelihood; `PRIOR` right labels are added to every class."""
    classes = shown.shape[1]
    of_label = [shown[given == label] for label in range(classes)]
    transition = np.full((classes, classes), (1 - START) / (classes - 1))
    np.fill_diagonal(transition, START)
    for _ in range(STEPS):
        joint = PRIOR * np.eye(classes)
        likelihood = 0.0
        for label, rows in enumerate(of_label):
            weights = rows * transition[:, label]
            total = weights.sum(1)
            likelihood += np.log(total).sum()
            joint[:, label] += (weights / total[:, None]).sum(0)
        before, transition = transition, joint / joint.sum(1, keepdims=True)
        if np.abs(transition - before).max() < TOLERANCE:
            break
    return transition, likelihood / len(given)


def _check(logits: np.ndarray, given: np.ndarray) -> None:
    if logits.ndim != 3 or given.shape != logits.shape[1:2]:
        raise InputError(
            f"The logits have the shape {logits.shape} and the labels {given.shape}; they must be (M, N, K) and (N,)."
        )
    if not np.isfinite(logits).all():
        raise InputError("Some logits are not finite; every image needs a finite number for each class.")
    classes = logits.shape[2]
    if given.min() < 0 or given.max() >= classes:
        span = f"from {given.min()} to {given.max()}"
        raise InputError(f"The labels run {span}; {classes} classes allow 0 to {classes - 1}.")
    empty = np.flatnonzero(np.bincount(given, minlength=classes) == 0)
    if empty.size:
        raise InputError(f"No image has the label {empty[0]}; every class needs at least one.")
