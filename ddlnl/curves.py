"""What training students gives: accuracies along the way, and which classes the trained ones mistake for which."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddlnl.training import Progress


@dataclass(frozen=True)
class Curves:
    """Accuracies of S students at P test points: `test` and `validation` are S lists of P fractions of 1.

    `epochs` names the test points, counted from 1: epochs, and steps where a protocol counts in steps (RCIG's).
    `confusion`: (K, K) counts of test images by clean class (row) and class predicted by the trained students (column),
    all students added up.
    """

    epochs: list[int]
    test: list[list[float]]
    validation: list[list[float]]
    confusion: list[list[int]]


class Marks:
    """The curves while they grow, as tensors that can be kept and put back.

    exams: "test" and perhaps "validation", each preprocessed images (T, C, H, W) and labels (T,). progress: that of the
    training, whose clock stands still during tests: small sets are tested at other points than whole ones.
    """

    def __init__(
        self,
        exams: dict[str, tuple[Tensor, Tensor]],
        students: int,
        points: list[int],
        classes: int,
        progress: Progress | None = None,
    ) -> None:
        self.exams, self.points, self.classes, self.progress = exams, points, classes, progress
        self.accuracies = {exam: torch.zeros(students, len(points), dtype=torch.float64) for exam in exams}
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)

    def enter(self, point: int, predict: Callable[[Tensor], Tensor]) -> None:
        """Mark what the students `predict` at a test point: images (T, C, H, W) to (S, T) classes.

        A GPU must have finished training: what it still does is counted as testing.
        """
        with self.progress.paused() if self.progress else contextlib.nullcontext():
            for exam, (images, labels) in self.exams.items():
                predicted = predict(images)
                self.accuracies[exam][:, self.points.index(point)] = (predicted == labels).double().mean(1).cpu()
                if exam == "test" and point == self.points[-1]:
                    pairs = (labels * self.classes + predicted).flatten().cpu()
                    self.confusion.copy_(torch.bincount(pairs, minlength=self.classes**2).view_as(self.confusion))

    def tensors(self) -> dict[str, Tensor]:
        """All that is known so far; copying into these tensors goes on from there."""
        return {f"curve.{exam}": curve for exam, curve in self.accuracies.items()} | {"confusion": self.confusion}

    def curves(self) -> Curves:
        found = {exam: curve.tolist() for exam, curve in self.accuracies.items()}
        return Curves(self.points, found["test"], found.get("validation", []), self.confusion.tolist())


class WithMarks:
    """Keeps the marks given so far beside the training state, so that a resumed run reports them all."""

    def __init__(self, progress: Progress, marks: Marks) -> None:
        self.progress, self.marks = progress, marks

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        saved = self.progress.load()
        if saved:
            for name, tensor in self.marks.tensors().items():
                tensor.copy_(saved[1].pop(name))
        return saved

    def save(self, step, state) -> None:
        self.progress.save(step, lambda: state() | self.marks.tensors())
