"""Plain PyTorch twins of the operators: the definition that every kernel is tested against.

Each twin is written from the formula with ordinary differentiable operations, so it has derivatives of any order in
reverse and forward mode, in any floating dtype, on any device.
"""

from ddlnl.ops.reference._augment import CODES, COLUMNS, NEUTRAL, augment
from ddlnl.ops.reference._block import norm_relu_pool, norm_relu_pool_tangent
from ddlnl.ops.reference._distances import class_mean_distance, trajectory_distance
from ddlnl.ops.reference._smooth import softplus_pool, softplus_pool_backward, softplus_pool_tangent

__all__ = [
    "CODES",
    "COLUMNS",
    "NEUTRAL",
    "augment",
    "class_mean_distance",
    "norm_relu_pool",
    "norm_relu_pool_tangent",
    "softplus_pool",
    "softplus_pool_backward",
    "softplus_pool_tangent",
    "trajectory_distance",
]
