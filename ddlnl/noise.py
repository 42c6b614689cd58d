"""Label noise and class imbalance of training sets.

A noise is written as a string: `clean`, `symmetric:0.4`, `asymmetric:0.4` (similar classes, `transitions.FLIPS`), for
CIFAR-100 also `asymmetric-head:0.4` and `asymmetric-first:0.4` (the versions in the study's code), `pairflip:0.4`,
`instance:0.4`, and `human:worst` (labels that people gave). Only training labels are ever changed. An imbalance is
`longtail:100`, `step:100` or `none`, and is applied before the noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from ddlnl import transitions
from ddlnl.datasets import ImageSet
from ddlnl.errors import InputError, nearest
from ddlnl.generators import numpy_generator

RATED = ("symmetric", "asymmetric", "asymmetric-head", "asymmetric-first", "pairflip", "instance")
KINDS = ("clean", *RATED, "human")
FORMS = "clean, human:SET, or KIND:RATE with KIND one of " + ", ".join(RATED)
IMBALANCES = ("longtail", "step")
CHUNK = 1024  # images of which instance noise makes floats at once


@dataclass(frozen=True)
class Noise:
    """A parsed noise. rate: nominal, in [0, 1]; None for human labels, whose rate is what people made it."""

    kind: str
    rate: float | None
    label_set: str | None = None

    def __str__(self) -> str:
        if self.kind == "clean":
            return "clean"
        return f"{self.kind}:{self.label_set or str(self.rate).removesuffix('.0')}"


def parse(spec: str) -> Noise:
    """The noise that a string names; a rate of 0 is `clean`. `str()` of the result is canonical.

    Raises `InputError` on an unknown kind, a rate that is not a number in [0, 1], or a missing label set.
    """
    kind, colon, value = str(spec).partition(":")
    if kind not in KINDS:
        raise InputError(f"The noise {str(spec)!r} is unknown; it is written {FORMS}.{nearest(kind, KINDS)}")
    if kind == "clean" and not colon:
        return Noise("clean", 0.0)
    if kind == "human" and value.isidentifier():
        return Noise(kind, None, value)
    if kind not in RATED:
        raise InputError(f"The noise {str(spec)!r} is not complete; it is written {FORMS}.")
    rate = _number(value)
    if not 0 <= rate <= 1:
        raise InputError(f"The noise {str(spec)!r} has no rate from 0 to 1; it is written as in '{kind}:0.4'.")
    return Noise(kind, rate) if rate > 0 else Noise("clean", 0.0)


def transition_matrix(noise: Noise, dataset: str, classes: int) -> np.ndarray:
    """The nominal (K, K) float64 matrix, rows clean, columns observed; see `transitions`.

    Raises `InputError` where the dataset has no such noise, and for `instance` and `human`, where no matrix says all:
    after `corrupt` they carry the realised one.
    """
    if noise.kind == "clean":
        return np.eye(classes)
    if noise.kind == "symmetric":
        return transitions.symmetric(noise.rate, classes)
    if noise.kind == "pairflip":
        return transitions.pairflip(noise.rate, classes)
    if noise.kind.startswith("asymmetric"):
        return transitions.asymmetric(noise.kind, noise.rate, dataset, classes)
    raise InputError(f"{noise.kind} noise has no nominal matrix; corrupt a training set and take realised_transition.")


def corrupt(train: ImageSet, spec: str, seed: int = 0) -> ImageSet:
    """The training set with `.observed`, `.noise` and `.transition` of that noise, drawn anew from `.clean`.

    Seed 0 of a noise with a nominal matrix draws as the noisy-label study did (arXiv 2411.11924): numpy's legacy
    RandomState(0), one multinomial per image in dataset order, so that its label vectors come out. Every other draw
    comes from a generator named by the seed and the noise. Human labels ignore the seed. `.transition` is the nominal
    matrix, for `instance` and `human` the realised one. Raises `InputError` on a bad spec or seed, on noise that the
    dataset does not have, and where no image would be left with one of the observed labels.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"The seed is {seed!r}, and it must be a whole number of at least 0.")
    noise = parse(spec)
    if noise.kind == "human":
        observed, matrix = _human(train, noise.label_set), None
    elif noise.kind == "instance":
        observed, matrix = _instance(train, noise.rate, numpy_generator(seed, "noise", str(noise))), None
    else:
        matrix = transition_matrix(noise, train.name, train.num_classes)
        observed = _drawn(train.clean, matrix, noise, seed)
    noisy = replace(train, observed=observed, noise=str(noise), transition=matrix)
    empty = np.flatnonzero(np.bincount(observed, minlength=train.num_classes) == 0)
    if empty.size:
        label = train.class_names[empty[0]]
        raise InputError(f"{noise} leaves no training image with the label {label}; every class needs at least one.")
    return noisy if matrix is not None else replace(noisy, transition=realised_transition(noisy))


def confusion(images: ImageSet) -> np.ndarray:
    """(K, K) int64: how many images have each clean label (row) and each observed one (column)."""
    counts = np.zeros((images.num_classes, images.num_classes), dtype=np.int64)
    np.add.at(counts, (images.clean, images.observed), 1)
    return counts


def realised_transition(images: ImageSet) -> np.ndarray:
    """(K, K) float64: the share of each observed label (column) among the images of each clean label (row).

    Rows sum to one, except that the row of a class without images is zero.
    """
    counts = confusion(images)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def realised_rate(images: ImageSet) -> float:
    """The share of images whose observed label is not the clean one."""
    return float((images.observed != images.clean).mean())


def available(train: ImageSet, rates: Iterable[float]) -> list[str]:
    """Clean labels and every noise that the training set can have: symmetric and, where its classes have flips,
    asymmetric noise at each of the rates, then the label sets that people gave."""
    kinds = ["symmetric"]
    if transitions.FLIPS.get(("asymmetric", train.name), (None,))[0] == train.num_classes:
        kinds.append("asymmetric")
    specs = [f"{kind}:{rate}" for kind in kinds for rate in rates] + [f"human:{label_set}" for label_set in train.human]
    return list(dict.fromkeys(["clean", *(str(parse(spec)) for spec in specs)]))


def natural(train: ImageSet, rates: Iterable[float]) -> tuple[str, list[str]]:
    """The kind of noise that comes nearest to that of people, and clean labels and every noise of it: the label sets
    that people gave, and for a training set without any instance-dependent noise at each of the rates."""
    kind = "human" if train.human else "instance"
    specs = [f"human:{label_set}" for label_set in train.human] or [f"instance:{rate}" for rate in rates]
    return kind, list(dict.fromkeys(["clean", *(str(parse(spec)) for spec in specs)]))


def imbalance(train: ImageSet, spec: str, seed: int = 0) -> ImageSet:
    """A random part of a training set whose class sizes follow a profile; to be applied before any noise.

    With n the size of the largest class, class k of K keeps n F**(-k / (K - 1)) images, rounded down, in `longtail:F`;
    in `step:F` the last half of the classes keep n / F; `none` keeps all. A smaller class keeps what it has. The
    classes are the clean ones, images stay in dataset order, and with one seed a larger F keeps a part of what a
    smaller one keeps. Raises `InputError` on a bad spec, on a set that has noise already, and where a class would keep
    nothing.
    """
    if spec == "none":
        return train
    kind, _, value = str(spec).partition(":")
    factor = _number(value)
    if kind not in IMBALANCES or not 1 <= factor < math.inf:
        allowed = "an imbalance is none, longtail:F or step:F with a finite F of at least 1"
        raise InputError(f"The imbalance {str(spec)!r} is not known: {allowed}.{nearest(kind, IMBALANCES)}")
    if train.noise != "clean":
        raise InputError(f"The set has {train.noise} noise already, and imbalance must be applied before noise.")
    if factor == 1:
        return train
    sizes = np.bincount(train.clean, minlength=train.num_classes)
    k = np.arange(train.num_classes)
    share = factor ** -(k / (len(k) - 1)) if kind == "longtail" else np.where(k < len(k) // 2, 1, 1 / factor)
    # 1e-9: a product that rounding has left just below a whole number is meant whole.
    kept = np.minimum(sizes, np.floor(sizes.max() * share + 1e-9).astype(int))
    if kept.min() < 1:
        label = train.class_names[kept.argmin()]
        raise InputError(f"{spec} keeps no image of the class {label}; the factor can be at most {sizes.max()}.")
    members = [numpy_generator(seed, "imbalance", int(c)).permutation(np.flatnonzero(train.clean == c)) for c in k]
    return train.subset(np.sort(np.concatenate([own[:count] for own, count in zip(members, kept, strict=True)])))


def _number(text: str) -> float:
    """The number in a spec, NaN where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _drawn(clean: np.ndarray, matrix: np.ndarray, noise: Noise, seed: int) -> np.ndarray:
    """One observed label per clean one, from its row of the matrix."""
    if seed == 0:
        legacy = np.random.RandomState(0)  # its stream is frozen, and the study's label vectors are draws from it
        return np.array([legacy.multinomial(1, matrix[label]).argmax() for label in clean], dtype=np.int64)
    uniform = numpy_generator(seed, "noise", str(noise)).random(len(clean))
    return np.concatenate([_inverse_cdf(matrix[clean[part]], uniform[part]) for part in _chunks(len(clean))])


def _instance(train: ImageSet, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Instance-dependent noise in the manner of Xia et al. (NeurIPS 2020): an image decides how, and to what, it flips.

    An image flips with a probability of its own, normal around `rate` with deviation 0.1, truncated to (0, 1); to which
    other class is the softmax of one standard normal projection of its pixels, scaled to [-1, 1]. The truncation moves
    the mean rate where `rate` is within 0.2 of 0 or 1.
    """
    low, high = special.ndtr((np.array([0.0, 1.0]) - rate) / 0.1)
    flip = rate + 0.1 * special.ndtri(low + (high - low) * generator.random(len(train)))
    uniform = generator.random(len(train))
    projection = generator.standard_normal((train.images[0].size, train.num_classes), dtype=np.float32)
    observed = []
    for part in _chunks(len(train)):
        pixels = train.images[part].reshape(-1, len(projection)).astype(np.float32) / 127.5 - 1
        logits = (pixels @ projection).astype(np.float64)
        own = np.arange(len(logits)), train.clean[part]
        logits[own] = -np.inf
        rows = flip[part, None] * special.softmax(logits, axis=1)
        rows[own] = 1 - flip[part]
        observed.append(_inverse_cdf(rows, uniform[part]))
    return np.concatenate(observed)


def _human(train: ImageSet, label_set: str) -> np.ndarray:
    if label_set not in train.human:
        known = ", ".join(train.human) or "none"
        how = "those of CIFAR-N are added with `python -m ddlnl data import-cifar-n FILE`"
        raise InputError(f"{train.name} has no human labels {label_set!r}; it has {known}, and {how}.")
    return train.human[label_set]


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))


def _inverse_cdf(rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """One label (n,) int64 per row of probabilities (n, K): where its cumulated sum first exceeds `uniform`, (n,)."""
    cumulated = rows.cumsum(axis=1)
    cumulated /= cumulated[:, -1:]  # exactly 1 from the last possible label on, so that no impossible one is drawn
    return (cumulated <= uniform[:, None]).sum(axis=1)
