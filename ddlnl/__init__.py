"""How much label noise does dataset distillation remove, absorb and cost? (arXiv 2411.11924, re-run and extended)"""

__version__ = "0.1.0"

from ddlnl.denoising import denoise
from ddlnl.distilled import DistilledSet
from ddlnl.errors import DamagedError, InputError
from ddlnl.methods import distill

__all__ = ["DamagedError", "DistilledSet", "InputError", "denoise", "distill"]
