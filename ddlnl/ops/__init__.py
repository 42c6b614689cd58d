"""Operators of the package: the fast path where one is built, else the plain PyTorch twin in `ddlnl.ops.reference`."""

from ddlnl.ops.reference import augment, class_mean_distance

__all__ = ["augment", "class_mean_distance"]
