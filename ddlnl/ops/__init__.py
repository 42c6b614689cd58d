"""Operators of the package: the plain PyTorch twins of `ddlnl.ops.reference`; for now the compiled core holds none."""

from ddlnl import _core
from ddlnl.ops.reference import augment, class_mean_distance

_core.load()

__all__ = ["augment", "class_mean_distance"]
