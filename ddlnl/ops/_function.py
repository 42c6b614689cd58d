"""The base of every derivative here."""

from __future__ import annotations

import inspect

import torch


class Function(torch.autograd.Function):
    """`torch.autograd.Function` that keeps the signature of its `forward`.

    torch's own `apply` looks it up at every call, a fifth of what a call of a small operator costs.
    """

    def __init_subclass__(cls, **options) -> None:
        super().__init_subclass__(**options)
        cls.forward.__signature__ = inspect.signature(cls.forward)
