"""Learning with noisy labels on the whole set, beside which distillation must stand: GCE, ELR and Co-teaching.

Each is an objective for `evaluation.train_students`, so network, augmentation, schedule and number of steps are those
of the full noisy set; Co-teaching takes the steps twice, for its pairs. CutMix is left out: it mixes the labels of two
images, and ELR and Co-teaching judge every image by its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddlnl.training import Objective, Protocol


@dataclass(frozen=True)
class Settings:
    """Published settings for CIFAR-10, by symbol of the papers.

    gce_q: q of GCE. elr_beta, elr_lambda: the memory and the weight of ELR (CIFAR-100: 0.9 and 7). forget_rate: the
    share of a batch that Co-teaching leaves out, tau; the paper takes the noise rate, so it has to be known or
    estimated, and None stands for it. gradual_epochs: over how many epochs that share grows from 0, T_k.
    """

    gce_q: float = 0.7
    elr_beta: float = 0.7
    elr_lambda: float = 3.0
    forget_rate: float | None = None
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

    peers = 2

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


METHODS = ("gce", "elr", "coteaching")


def objective(method: str, settings: Settings, students: int, images: int, classes: int) -> Objective:
    """What a method of `METHODS` minimises, for that many students, training images and classes."""
    if method == "gce":
        return GCE(settings.gce_q)
    if method == "elr":
        return ELR(students, images, classes, settings.elr_beta, settings.elr_lambda)
    return CoTeaching(settings.forget_rate, settings.gradual_epochs)


def protocol(full: Protocol) -> Protocol:
    """How the methods train: as on the full noisy set, without CutMix."""
    return replace(full, recipe=replace(full.recipe, cutmix=0.0))
