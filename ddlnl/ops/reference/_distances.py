"""The matching losses as ordinary differentiable operations."""

from __future__ import annotations

import torch
from torch import Tensor


def class_mean_distance(
    real: Tensor, real_labels: Tensor, synthetic: Tensor, synthetic_labels: Tensor, num_classes: int
) -> Tensor:
    """Sum over classes of the squared distance of mean features (arXiv 2110.04181, equation 5).

    Args: real (R, D) and synthetic (S, D) features with int64 labels (R,), (S,) in mixed order. A class that is missing
    on either side counts as 0. Returns a scalar.
    """

    compute = torch.promote_types(real.dtype, torch.float32)

    def means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        features = features.to(compute)
        sums = features.new_zeros(num_classes, features.shape[1]).index_add(0, labels, features)
        counts = labels.new_zeros(num_classes).index_add(0, labels, torch.ones_like(labels))
        return sums / counts.clamp(min=1)[:, None].to(sums), counts > 0

    real_means, real_present = means(real, real_labels)
    synthetic_means, synthetic_present = means(synthetic, synthetic_labels)
    distances = (synthetic_means - real_means).square().sum(1)
    return torch.where(real_present & synthetic_present, distances, 0).sum().to(real.dtype)


def trajectory_distance(student: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Normalised squared distance of parameters |student - target|^2 / |start - target|^2 (arXiv 2203.11932, eq. 2).

    Args: (P,) flat vectors, or (M, P) for M students at once. Returns a scalar, or (M,). It is NaN or infinite where
    start equals target.
    """
    dtype = student.dtype
    compute = torch.promote_types(student.dtype, torch.float32)
    student, target, start = (one.to(compute) for one in (student, target, start))
    return ((student - target).square().sum(-1) / (start - target).square().sum(-1)).to(dtype)
