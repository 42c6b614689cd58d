"""RCIG from its definitions with torch.func, with nothing simplified: what the closed forms are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp


def logits_and_features(network, flat: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """The plain network."""
    hidden = images
    *blocks, (kernel, bias) = network.layers(flat)
    for block, layer in enumerate(blocks):
        before = F.conv2d(hidden, *layer, padding=network.padding(block))
        smooth = network.activation == "softplus"
        hidden = F.avg_pool2d(F.softplus(before, 60.0, 40.0) if smooth else F.relu(before), 2)
    features = hidden.flatten(1)
    return F.linear(features, kernel, bias), features


def linearised(network, base: Tensor, tangent: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features at `base`, and the derivative of the logits in the direction `tangent`."""
    (_, features), (moved, _) = jvp(lambda flat: logits_and_features(network, flat, images), (base,), (tangent,))
    return features, moved


def inner_loss(network, base, tangent, images, labels, ridge) -> Tensor:
    """(1 / mC) (1/2 |Y - D - H W|^2 + ridge/2 (|W|^2 + |tangent|^2)) with W from ridge regression: not simplified."""
    features, moved = linearised(network, base, tangent, images)
    gram = features @ features.T + ridge * torch.eye(len(images), dtype=features.dtype)
    head = features.T @ torch.linalg.solve(gram, labels - moved)
    residual = labels - moved - features @ head
    penalty = head.square().sum() + tangent.square().sum()
    return (residual.square().sum() + ridge * penalty) / 2 / labels.numel()


def hessian_product(loss, tangent: Tensor, direction: Tensor) -> Tensor:
    """Forward over reverse."""
    return jvp(grad(loss), (tangent,), (direction,))[1]
