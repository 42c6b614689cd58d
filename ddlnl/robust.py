"""Learning with noisy labels on the whole set, beside which distillation must stand: GCE, ELR and Co-teaching.

Each is an objective for `training.train`, so network, augmentation, schedule and number of steps are those of the full
noisy set. CutMix is left out: it mixes the labels of two images, and ELR and Co-teaching judge every image by its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddlnl import training
from ddlnl.curves import Curves, Marks, WithMarks
from ddlnl.errors import InputError, nearest
from ddlnl.generators import derive
from ddlnl.networks import Stack
from ddlnl.training import Objective, Protocol


@dataclass(frozen=True)
class Settings:
    """Published settings for CIFAR-10, by symbol of the papers.

    gce_q: q of GCE. elr_beta, elr_lambda: the memory and the weight of ELR (CIFAR-100: 0.9 and 7). forget_rate: the
    share of a batch that Co-teaching leaves out, tau; the paper takes the noise rate, so it has to be known or
    estimated. gradual_epochs: over how many epochs that share grows from 0, T_k.
    """

    gce_q: float = 0.7
    elr_beta: float = 0.7
    elr_lambda: float = 3.0
    forget_rate: float = 0.2
    gradual_epochs: int = 10


class GCE(Objective):
    """Generalised cross-entropy (Zhang & Sabuncu, NeurIPS 2018, eq. 6): L_q = (1 - p_y^q) / q, without truncation.

    Between the cross-entropy (q to 0) and the mean absolute error (q = 1), which ignores symmetric noise but learns
    slowly. For class probabilities as targets it is the mean over classes with those weights.
    """

    def __init__(self, q: float) -> None:
        self.q = q

    def __call__(self, logits: Tensor, targets: Tensor, index: Tensor, epoch: int) -> Tensor:
        powers = (self.q * logits.log_softmax(2)).exp()  # p^q, whose gradient stays finite where p underflows
        return (targets * (1 - powers) / self.q).sum(2).mean(1).sum()


class ELR(Objective):
    """Early-learning regularisation (Liu et al., NeurIPS 2020, eq. 6 and 10): CE + lambda log(1 - <p, t>).

    t is the memory of each image's past predictions, t <- beta t + (1 - beta) p before the loss is taken, without
    gradient. Pulling p towards t amplifies the gradient of labels learned early and cancels that of labels that
    contradict them. Probabilities are kept from 1e-4 of 0 and 1, as in the authors' code.
    """

    def __init__(self, networks: int, images: int, classes: int, beta: float, weight: float) -> None:
        self.beta, self.weight = beta, weight
        self.memory = torch.zeros(networks, images, classes)

    def __call__(self, logits: Tensor, targets: Tensor, index: Tensor, epoch: int) -> Tensor:
        predicted = logits.softmax(2).clamp(1e-4, 1 - 1e-4)
        past = self._remember(predicted.detach(), index)
        agreement = (past * predicted).sum(2)
        return super().__call__(logits, targets, index, epoch) + self.weight * (1 - agreement).log().mean(1).sum()

    def _remember(self, predicted: Tensor, index: Tensor) -> Tensor:
        """(M, B, K) renewed memory of the images at `index`."""
        self.memory = self.memory.to(predicted)
        network = torch.arange(len(index), device=index.device)[:, None]
        normed = predicted / predicted.sum(2, keepdim=True)
        self.memory[network, index] = self.beta * self.memory[network, index] + (1 - self.beta) * normed
        return self.memory[network, index]

    def state(self) -> dict[str, Tensor]:
        return {"memory": self.memory.clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        self.memory = state["memory"].clone()


class CoTeaching(Objective):
    """Co-teaching (Han et al., NeurIPS 2018, algorithm 1): each of two networks learns what the other finds easy.

    Networks 2 k and 2 k + 1 are a pair and see the same batches. Of a batch each keeps the share R(T) with the smallest
    cross-entropy under its peer, R(T) = 1 - tau min(T / T_k, 1), T counted from 0 as in the authors' code.
    """

    def __init__(self, forget_rate: float, gradual_epochs: int) -> None:
        self.forget_rate, self.gradual_epochs = forget_rate, gradual_epochs

    def kept(self, epoch: int, batch: int) -> int:
        """How many images of a batch are learned from: R(T) of them, rounded down, at least one."""
        return max(1, int((1 - self.forget_rate * min(epoch / self.gradual_epochs, 1)) * batch))

    def __call__(self, logits: Tensor, targets: Tensor, index: Tensor, epoch: int) -> Tensor:
        losses = -(targets * logits.log_softmax(2)).sum(2)
        of_peer = losses.detach().unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        easy = of_peer.topk(self.kept(epoch, losses.shape[1]), 1, largest=False).indices
        return losses.gather(1, easy).mean(1).sum()


def _gce(settings: Settings, stack: Stack, targets: Tensor) -> Objective:
    return GCE(settings.gce_q)


def _elr(settings: Settings, stack: Stack, targets: Tensor) -> Objective:
    return ELR(len(stack), *targets.shape, settings.elr_beta, settings.elr_lambda)


def _coteaching(settings: Settings, stack: Stack, targets: Tensor) -> Objective:
    return CoTeaching(settings.forget_rate, settings.gradual_epochs)


METHODS: dict[str, Callable[[Settings, Stack, Tensor], Objective]] = {
    "full_gce": _gce,
    "full_elr": _elr,
    "full_coteaching": _coteaching,
}
PAIRED = ("full_coteaching",)  # twice the training steps


def train(
    images: Tensor,
    targets: Tensor,
    protocol: Protocol,
    method: str,
    exams: Mapping[str, tuple[Tensor, Tensor]],
    seeds: Sequence[int],
    settings: Settings | None = None,
    progress: training.Progress | None = None,
) -> Curves:
    """Train one network per seed on the whole noisy set by `method`, and test it on every exam.

    Args:
        images, targets: (N, C, H, W) preprocessed float32, (N, K) float32 one-hot observed labels.
        protocol: that of the full noisy set, followed without CutMix.
        method: a name of `METHODS`. Co-teaching trains a pair per seed, and the first of it is tested.
        exams: as for `evaluation.train_students`.
        progress: where to resume from; the end result is that of an uninterrupted run.

    Raises `InputError` on an unknown method and `training.NotFinite` where a loss is NaN or infinite.
    """
    if method not in METHODS:
        raise InputError(
            f"The method {method!r} is unknown; it is one of {', '.join(METHODS)}.{nearest(method, METHODS)}"
        )
    recipe = replace(protocol.recipe_for(len(images)), cutmix=0.0)
    points = protocol.tested_epochs(recipe.epochs)
    each = 2 if method in PAIRED else 1
    starts = [start for seed in seeds for start in (seed, derive(seed, "peer"))[:each]]
    classes, channels, size = targets.shape[1], images.shape[1], images.shape[-1]
    stack = training.initialise(lambda: protocol.architecture.build(classes, size, channels), starts, images.device)
    marks = Marks(exams, len(seeds), points, classes)
    objective = METHODS[method](settings or Settings(), stack, targets)

    def test(epoch: int) -> None:
        if epoch in points:
            marks.enter(epoch, lambda inputs: training.predict(stack, inputs).argmax(2)[::each])

    draws = [seed for seed in seeds for _ in range(each)]  # a pair sees the same batches
    kept = WithMarks(progress, marks) if progress else None
    training.train(stack, images, targets, recipe, draws, test, kept, objective)
    return marks.curves()
