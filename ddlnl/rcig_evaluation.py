"""How RCIG's sets are evaluated: students regress on the learned labels, with Adam and a warm-up.

There are two published runs: with augmentation, which the noisy-label study reports, and without
(`Protocol.without_augmentation`), where the code goes on for one and a half times the steps at the smallest learning
rate, and which is the better one on CIFAR-10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddlnl import rcig_augment, training
from ddlnl.curves import Curves, Marks
from ddlnl.generators import generator
from ddlnl.rcig_meta import mirrored
from ddlnl.rcig_network import Linearised, Network
from ddlnl.rcig_pool import train_steps
from ddlnl.rcig_settings import published, published_augmentation
from ddlnl.rcig_solve import adam

_ROWS_ON_CPU = 64  # images per call, so that activations stay in cache
_TEST_EVERY = 500  # steps, as published


@dataclass(frozen=True)
class Protocol:
    """How students are trained and when they are tested.

    Students are ConvNets without norm, with ReLU. mirror: every distilled image is also used mirrored. steps: length of
    the schedule; None: 1000 for exactly ten distilled images, else 2000. The learning rate rises linearly to lr over
    `warmup` steps, then falls along a cosine to `floor` lr. Every step takes all images (of at most `batch` distilled
    ones), else `batch` random ones of all. augmentation: operations of `rcig_augment`, or "" for none, which multiplies
    the steps by 5/2.
    """

    depth: int = 3
    width: int = 128
    mirror: bool = True
    augmentation: str = rcig_augment.ALL
    steps: int | None = None
    lr: float = 1e-4
    warmup: int = 500
    floor: float = 0.01
    batch: int = 256

    def scheduled(self, images: int) -> int:
        """Steps until the learning rate is at its floor, for that many distilled images."""
        return self.steps or (1000 if images == 10 else 2000)

    def total(self, images: int) -> int:
        """Steps in all."""
        return self.scheduled(images) if self.augmentation else self.scheduled(images) * 5 // 2

    def rate(self, step: int, images: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * step / self.warmup
        part = min(1.0, (step - self.warmup) / max(1, self.scheduled(images) - self.warmup))
        return self.lr * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * part)) / 2)

    def tested_steps(self, images: int) -> list[int]:
        """The steps (counted from 1) after which students are tested: every 500 and the last."""
        total = self.total(images)
        return sorted({*range(_TEST_EVERY, total, _TEST_EVERY), total})

    def without_augmentation(self) -> Protocol:
        """The published run without operations, which goes on for one and a half times the steps at the end."""
        return replace(self, augmentation="")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Protocol:
        """The inverse of `dataclasses.asdict`."""
        return cls(**values)


def published_protocol(dataset: str, ipc: int) -> Protocol:
    """The published protocol of a dataset, with augmentation. Raises `InputError` for a dataset or IPC without
    published settings."""
    settings = published(dataset, "clean", ipc)
    return Protocol(settings.depth, settings.width, settings.mirror, published_augmentation(dataset, ipc))


def train_students(
    images: Tensor,
    targets: Tensor,
    protocol: Protocol,
    exams: dict[str, tuple[Tensor, Tensor]],
    seeds: Sequence[int],
    progress: training.Progress | None = None,
) -> Curves:
    """Train one fresh student per seed and test them on every exam at the protocol's test points.

    The loss is sum 1/2 (logits - targets)^2 / (B K). A student's draws depend on its own seed alone.

    Args:
        images, targets: (n, C, H, W) preprocessed, without mirror images, and (n, K) real numbers.
        exams: "test" and perhaps "validation", each preprocessed images (T, C, H, W) and labels (T,).

    Returns: accuracies; `epochs` holds the steps of the test points. Raises `training.NotFinite`.
    """
    count, points = len(images), protocol.tested_steps(len(images))
    students = _Students(images, targets, protocol, seeds)
    marks = Marks(exams, len(seeds), points, targets.shape[1], progress)
    finished = 0
    if progress and (saved := progress.load()):
        finished = saved[0]
        for name, tensor in (students.tensors() | marks.tensors()).items():
            tensor.copy_(saved[1][name])
    for step in range(finished, protocol.total(count)):
        students.step(step)
        if step + 1 in points:
            students.require_finite("weights", students.flat, step)
            marks.enter(step + 1, lambda images, step=step: students.predict(images, step))
        if progress:
            progress.save(step + 1, lambda: students.tensors() | marks.tensors())
    return marks.curves()


class _Students:
    """S students as one stack: weights and Adam's moments, (S, P) each."""

    def __init__(self, images: Tensor, targets: Tensor, protocol: Protocol, seeds: Sequence[int]) -> None:
        self.protocol, self.seeds, self.count = protocol, seeds, len(images)
        self.images = mirrored(images) if protocol.mirror else images
        self.targets = targets.repeat(2, 1) if protocol.mirror else targets
        channels, size = images.shape[1:3]
        self.network = Network(targets.shape[1], protocol.depth, protocol.width, size, channels, "relu")
        self.rows = _ROWS_ON_CPU if images.device.type == "cpu" else len(self.images)
        fresh = [self.network.initialise(generator(seed, "initialisation")) for seed in seeds]
        self.flat = torch.stack(fresh).to(images)
        self.mean, self.square = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self._optimisers: list[torch.optim.Adam] = []

    def tensors(self) -> dict[str, Tensor]:
        return {"flat": self.flat, "mean": self.mean, "square": self.square}

    def step(self, step: int) -> None:
        if not self._optimisers:  # only now is it known where a resumed training stands
            moments = zip(self.flat, self.mean, self.square, strict=True)
            self._optimisers = [adam(flat, 0.0, mean, square, step) for flat, mean, square in moments]
        rate = self.protocol.rate(step, self.count)
        for optimiser, seed in zip(self._optimisers, self.seeds, strict=True):
            (group,) = optimiser.param_groups
            group["lr"], (flat,) = rate, group["params"]
            train_steps(self.network, flat, optimiser, [self._batch(generator(seed, "step", step))], self.rows)

    def _batch(self, source: torch.Generator) -> tuple[Tensor, Tensor]:
        images, targets = self.images, self.targets
        if self.count > self.protocol.batch:
            index = torch.randperm(len(images), generator=source)[: self.protocol.batch].to(images.device)
            images, targets = images[index], targets[index]
        if self.protocol.augmentation:
            images = rcig_augment.draw(self.protocol.augmentation, len(images), images.shape[2], source)(images)
        return images, targets

    def predict(self, images: Tensor, step: int) -> Tensor:
        """(S, N) classes of (N, C, H, W) images, after `step`. Raises `training.NotFinite`."""
        rows = _ROWS_ON_CPU if images.device.type == "cpu" else 1000
        each = [
            torch.cat([Linearised(self.network, flat, part, rows).logits for part in images.split(rows)])
            for flat in self.flat
        ]
        logits = torch.stack(each)
        self.require_finite("logits", logits, step)
        return logits.argmax(2)

    def require_finite(self, name: str, tensor: Tensor, step: int) -> None:
        if not bool(torch.isfinite(tensor).all()):
            raise training.NotFinite(
                f"The {name} of RCIG's students are not finite after step {step + 1}; a smaller learning rate than "
                f"{self.protocol.lr} may help."
            )
