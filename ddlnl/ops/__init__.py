"""Operators of the package. Each runs its compiled kernel where there is one and its plain PyTorch twin
(`ddlnl.ops.reference`) elsewhere, with the same derivatives: reverse and forward mode, to second order."""

from ddlnl._core import Backend, backend
from ddlnl.ops._augment import augment
from ddlnl.ops._block import norm_relu_pool, norm_relu_pool_tangent
from ddlnl.ops._distances import class_mean_distance, trajectory_distance
from ddlnl.ops._smooth import softplus_pool, softplus_pool_backward, softplus_pool_tangent

backend()

__all__ = [
    "Backend",
    "augment",
    "backend",
    "class_mean_distance",
    "norm_relu_pool",
    "norm_relu_pool_tangent",
    "softplus_pool",
    "softplus_pool_backward",
    "softplus_pool_tangent",
    "trajectory_distance",
]
