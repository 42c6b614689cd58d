"""Train fresh students and report every accuracy, under three selection rules.

`last`: after the last epoch. `validation`: at the test point with the best accuracy on held-out images with noisy
labels. `best_on_test`: at each student's best test point, the rule of the published code, which looks at the test set.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddlnl import rcig_evaluation, training
from ddlnl.curves import Curves, Marks, WithMarks
from ddlnl.datasets import ImageSet
from ddlnl.distilled import DistilledSet, Protocol
from ddlnl.errors import InputError
from ddlnl.generators import derive
from ddlnl.networks import Stack
from ddlnl.preprocess import Preprocessing, to_float

RULES = ("last", "validation", "best_on_test")


def select(checkpoints: Sequence[Curves], rule: str) -> list[float]:
    """One test accuracy per student, from the curves of one or more checkpoints of a run, by a rule of `RULES`.

    "validation" takes the checkpoint and test point with the best mean validation accuracy (the first of equals);
    "best_on_test" each student's best test point of the checkpoint where that is best on average.
    """
    if rule == "last":
        return [student[-1] for student in checkpoints[-1].test]
    if rule == "best_on_test":
        return max(([max(student) for student in curves.test] for curves in checkpoints), key=statistics.fmean)
    points = [
        (statistics.fmean(at_point), [student[point] for student in curves.test])
        for curves in checkpoints
        for point, at_point in enumerate(zip(*curves.validation, strict=True))
    ]
    return max(points, key=lambda found: found[0])[1]


@dataclass(frozen=True)
class Scores:
    """Test accuracies of fresh students after their last epoch, as fractions of 1; `std` is the sample deviation."""

    accuracies: list[float]
    curves: Curves

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


def choose_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one; raises `InputError` for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # also refuses devices that hold no numbers
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"The device {name!r} cannot be used here; allowed are auto, cpu and the devices torch finds."
        ) from error
    return device


def check_device_elsewhere(name: str) -> None:
    """Raise `InputError` for what no machine takes as a device; which of the others it has, it must see itself."""
    try:
        known = name == "auto" or torch.device(name).type != "meta"  # which holds no numbers
    except RuntimeError:
        known = False
    if not known:
        raise InputError(f"The device {name!r} is unknown; allowed are auto, cpu, cuda and cuda:<number>.")


def on_device(image_set: ImageSet, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """All images of a set, preprocessed, as one (N, C, H, W) float32 tensor on the device."""
    parts = torch.from_numpy(image_set.images).split(10_000)
    return torch.cat([preprocessing.apply(to_float(part.numpy()).to(device)) for part in parts])


def train_students(
    images: Tensor,
    targets: Tensor,
    protocol: Protocol,
    exams: dict[str, tuple[Tensor, Tensor]],
    seeds: Sequence[int],
    progress: training.Progress | None = None,
    objective: training.Objective | None = None,
) -> Curves:
    """Train one fresh student per seed and test them on every exam at the protocol's test points.

    Args:
        images, targets: (N, C, H, W) preprocessed and (N, K): probabilities, or free numbers for a protocol of RCIG.
        exams: "test" and perhaps "validation", each preprocessed images (T, C, H, W) and labels (T,).
        progress: where a training resumes from; its seconds are those of training, tests are in its `aside`.
        objective: what classifiers minimise, None for the cross-entropy; a protocol of RCIG has its own.
    """
    if isinstance(protocol, rcig_evaluation.Protocol):
        return rcig_evaluation.train_students(images, targets, protocol, exams, seeds, progress)
    return _train_classifiers(images, targets, protocol, exams, seeds, progress, objective or training.Objective())


def _train_classifiers(
    images: Tensor,
    targets: Tensor,
    protocol: training.Protocol,
    exams: dict[str, tuple[Tensor, Tensor]],
    seeds: Sequence[int],
    progress: training.Progress | None,
    objective: training.Objective,
) -> Curves:
    """All students at once, each with its peers, which are not tested."""
    recipe = protocol.recipe_for(len(images))
    points = protocol.tested_epochs(recipe.epochs)
    starts = [start for seed in seeds for start in (seed, derive(seed, "peer"))[: objective.peers]]
    stack = _fresh(images, targets, protocol, starts)
    marks = Marks(exams, len(seeds), points, targets.shape[1], progress)

    def test(epoch: int) -> None:
        if epoch in points:
            marks.enter(epoch, lambda inputs: training.predict(stack, inputs).argmax(2)[:: objective.peers])

    kept = WithMarks(progress, marks) if progress else None
    draws = [seed for seed in seeds for _ in range(objective.peers)]
    training.train(stack, images, targets, recipe, draws, test, kept, objective)
    return marks.curves()


def _fresh(images: Tensor, targets: Tensor, protocol: training.Protocol, seeds: Sequence[int]) -> Stack:
    """Untrained classifiers for these images and classes."""
    classes, channels, size = targets.shape[1], images.shape[1], images.shape[-1]
    return training.initialise(lambda: protocol.architecture.build(classes, size, channels), seeds, images.device)


def trained(
    images: Tensor,
    targets: Tensor,
    protocol: training.Protocol,
    seeds: Sequence[int],
    progress: training.Progress | None = None,
) -> Stack:
    """The students that `train_students` trains with the cross-entropy and forgets, one per seed, to be used."""
    stack = _fresh(images, targets, protocol, seeds)
    training.train(stack, images, targets, protocol.recipe_for(len(images)), seeds, progress=progress)
    return stack


def evaluate(
    small: DistilledSet,
    test: ImageSet,
    repeats: int = 5,
    augmentation: str = "published",
    seed: int = 0,
    device: str = "auto",
) -> Scores:
    """Accuracy on `test` of `repeats` fresh students trained on a distilled set by the set's own published protocol.

    augmentation: "published", or "none" to train without augmentation and CutMix (RCIG's second published run). Raises
    `InputError` on bad arguments.
    """
    if augmentation not in ("published", "none"):
        raise InputError(f"The augmentation {augmentation!r} is unknown; it is published or none.")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise InputError(f"The number of repeats is {repeats!r}, and it must be a whole number of at least 1.")
    if test.num_classes != len(small.class_names) or test.images.shape[1:] != _pixels(small):
        raise InputError(
            "The test set does not fit the distilled set; both need the same classes, image size and channels."
        )
    protocol = small.protocol.without_augmentation() if augmentation == "none" else small.protocol
    place = choose_device(device)
    images, targets = small.training_set()
    exam = on_device(test, small.preprocessing, place), torch.from_numpy(test.observed).to(place)
    curves = train_students(images.to(place), targets.to(place), protocol, {"test": exam}, student_seeds(seed, repeats))
    return Scores(select([curves], "last"), curves)


def _pixels(small: DistilledSet) -> tuple[int, int, int]:
    channels, height, width = small.images.shape[1:]
    return height, width, channels


def student_seeds(seed: int, repeats: int) -> list[int]:
    """Independent seeds of the students of one evaluation."""
    return [derive(seed, "student", student) for student in range(repeats)]
