"""Transition matrices of label noise: (K, K) float64, T[i, j] = P(observed label j | clean label i), rows sum to one.

The structured ones flip a class to one other class; which one is the table of this module.
"""

from __future__ import annotations

import numpy as np

from ddlnl.errors import InputError

# Ten classes in pairs that are swapped, as in the code of the noisy-label study (arXiv 2411.11924).
SWAPS = ((9, 1), (2, 0), (4, 7), (3, 5), (6, 8))

# Similar classes (Patrini et al., CVPR 2017).
CIFAR10 = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}  # truck -> automobile, bird -> airplane, cat <-> dog, deer -> horse
DIGITS = {7: 1, 2: 7, 3: 8, 5: 6, 6: 5}  # those of MNIST

# The 20 superclasses of CIFAR-100, members in alphabetical order, which is the order of their numbers.
SUPERCLASSES = (
    (4, 30, 55, 72, 95),  # aquatic mammals
    (1, 32, 67, 73, 91),  # fish
    (54, 62, 70, 82, 92),  # flowers
    (9, 10, 16, 28, 61),  # food containers
    (0, 51, 53, 57, 83),  # fruit and vegetables
    (22, 39, 40, 86, 87),  # household electrical devices
    (5, 20, 25, 84, 94),  # household furniture
    (6, 7, 14, 18, 24),  # insects
    (3, 42, 43, 88, 97),  # large carnivores
    (12, 17, 37, 68, 76),  # large man-made outdoor things
    (23, 33, 49, 60, 71),  # large natural outdoor scenes
    (15, 19, 21, 31, 38),  # large omnivores and herbivores
    (34, 63, 64, 66, 75),  # medium-sized mammals
    (26, 45, 77, 79, 99),  # non-insect invertebrates
    (2, 11, 35, 46, 98),  # people
    (27, 29, 44, 78, 93),  # reptiles
    (36, 50, 65, 74, 80),  # small mammals
    (47, 52, 56, 59, 96),  # trees
    (8, 13, 48, 58, 90),  # vehicles 1
    (41, 69, 81, 85, 89),  # vehicles 2
)
MOUSE = 50


def cycles(groups: tuple[tuple[int, ...], ...]) -> dict[int, int]:
    """Every class to the next of its group, the last to the first."""
    return {label: group[(k + 1) % len(group)] for group in groups for k, label in enumerate(group)}


_WITHOUT_MOUSE = tuple(tuple(label for label in group if label != MOUSE) for group in SUPERCLASSES)
_BLOCKS = tuple(tuple(range(first, first + 5)) for first in range(0, 100, 5))

# (kind of noise, dataset): number of classes, and which class is flipped to which.
FLIPS = {
    ("asymmetric", "digits"): (10, DIGITS),
    ("asymmetric", "cifar10"): (10, CIFAR10),
    ("asymmetric", "cifar100"): (100, cycles(SUPERCLASSES)),
    # The two other versions in the history of the study's code: the last one forgets the mouse, the first one cycles
    # five consecutive classes, which have nothing in common but the alphabet.
    ("asymmetric-head", "cifar100"): (100, cycles(_WITHOUT_MOUSE)),
    ("asymmetric-first", "cifar100"): (100, cycles(_BLOCKS)),
}


def symmetric(rate: float, classes: int) -> np.ndarray:
    """The clean label is kept with probability 1 - rate, every other has rate / (K - 1)."""
    matrix = np.full((classes, classes), rate / (classes - 1))
    np.fill_diagonal(matrix, 1 - rate)
    return matrix


def flipped(rate: float, classes: int, flips: dict[int, int]) -> np.ndarray:
    """A class in `flips` becomes its value with probability `rate`; the others stay."""
    matrix = np.eye(classes)
    for source, target in flips.items():
        matrix[source, source] = 1 - rate
        matrix[source, target] = rate
    return matrix


def asymmetric(kind: str, rate: float, dataset: str, classes: int) -> np.ndarray:
    """The dataset's own flips; raises `InputError` for a dataset that has none of this kind."""
    known, flips = FLIPS.get((kind, dataset), (None, {}))
    if known != classes:
        allowed = " and ".join(name for other, name in FLIPS if other == kind)
        raise InputError(f"{kind} noise is defined for {allowed}, and the dataset is {dataset} with {classes} classes.")
    return flipped(rate, classes, flips)


def pairflip(rate: float, classes: int) -> np.ndarray:
    """Ten classes: the fixed `SWAPS`. Any other number: every class to the next, the last to the first."""
    swaps = {a: b for pair in SWAPS for a, b in (pair, pair[::-1])}
    return flipped(rate, classes, swaps if classes == 10 else cycles((tuple(range(classes)),)))
