"""What records of every kind say: accuracies under each rule of choosing a checkpoint, and where they were computed."""

from __future__ import annotations

import datetime
import platform
import statistics
from collections.abc import Sequence
from typing import Any

import torch

import ddlnl
from ddlnl import evaluation, measure, ops
from ddlnl.curves import Curves


def scores(name: str, accuracies: list[float]) -> dict[str, Any]:
    """The columns for the test accuracies of students that are chosen or trained in the way `name`."""
    return {
        f"accuracy_{name}": statistics.fmean(accuracies),
        f"accuracies_{name}": accuracies,
        f"std_{name}": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
    }


def by_rule(checkpoints: Sequence[Curves | None]) -> dict[str, Any]:
    """`scores` under every rule of `evaluation.RULES`, which leave out checkpoints that diverged (None)."""
    known = [*filter(None, checkpoints)]
    found = [scores(rule, evaluation.select(known, rule)) for rule in evaluation.RULES]
    return {column: value for one in found for column, value in one.items()}


def circumstances(device: torch.device) -> dict[str, Any]:
    """Peak memory since `measure.reset_peak`, device, threads, versions and the time."""
    return {
        "peak_memory_mib": measure.peak_mib(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {
            "ddlnl": ddlnl.__version__,
            "operators": ops.backend().name,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
