"""Made-up records with the columns of `ddlnl.store.table`, for tests of what is drawn and concluded from them."""

from __future__ import annotations

import numpy as np
import pandas as pd

RULES = ("last", "validation", "best_on_test")
CONTROLS = ("random", "random_soft", "predicted")
RATES = (0.0, 0.2, 0.4, 0.6, 0.8)


def accuracy(method: str, rate: float, ipc: int) -> float:
    """A plausible accuracy: the full set falls fast with the noise rate, the distilled sets slowly."""
    if method == "full":
        return 0.95 - 0.75 * rate**1.3
    size = np.log10(ipc + 1) / np.log10(51)
    ceiling = {"random": 0.7, "random_soft": 0.74, "predicted": 0.78}.get(method, 0.9)
    slope = {"random": 0.6, "random_soft": 0.5, "predicted": 0.4}.get(method, 0.3)
    return min(0.4 + 0.6 * size, 1.05) * (ceiling - slope * rate**1.5)


def record(dataset: str, method: str, rate: float, ipc: int, seed: int, students: int, spread: float) -> dict:
    draw = np.random.default_rng([seed, ipc, round(rate * 100), *method.encode()])
    shared = np.random.default_rng([seed, round(rate * 100)]).normal(0, 2 * spread)  # the noise draw, common to a seed
    row = {
        "dataset": dataset,
        "noise": f"symmetric:{rate:g}" if rate else "clean",
        "rate": rate,
        "imbalance": "none",
        "method": method,
        "ipc": ipc,
        "seed": seed,
        "profile": "demo",
        "students": students,
        "realised_rate": rate,
        "train_images": 1347,
        "test_images": 450,
        "seconds": 4.0,
        "seconds_distil": 1.0,
        "seconds_evaluate": 2.5,
        "seconds_beside": 0.5,
        "peak_memory_mib": 300.0,
        "device": "cpu",
        "threads": 1,
        "versions": {"ddlnl": "0.1.0", "torch": "2.12.1"},
        "data_hash": "00" * 32,
        "noise_hash": f"{seed:016x}",
        "preprocessing_hash": "11" * 8,
        "key": f"{dataset}-{method}-{rate}-{ipc}-{seed}",
        "finished": "2025-01-01T00:00:00+00:00",
    }
    falling = rate * (method == "full")  # the full set learns its wrong labels late, so choosing an epoch helps it
    gain = {"last": 0.0, "validation": 0.15 * falling, "best_on_test": 0.02 + 0.2 * falling}
    for rule in RULES:
        scores = accuracy(method, rate, ipc) + gain[rule] + shared + draw.normal(0, spread, students)
        row[f"accuracies_{rule}"] = scores.tolist()
        row[f"accuracy_{rule}"] = scores.mean()
        row[f"std_{rule}"] = scores.std(ddof=1) if students > 1 else float("nan")
    return row


def records(
    datasets=("digits",), methods=("dance",), rates=RATES, ipcs=(1, 10, 50), seeds=3, students=5, spread=0.01
) -> pd.DataFrame:
    """One row per cell; the full set has IPC 0."""
    cells = [(m, i) for m in (*methods, *CONTROLS) for i in ipcs] + [("full", 0)]
    rows = [
        record(dataset, method, rate, ipc, seed, students, spread)
        for dataset in datasets
        for method, ipc in cells
        for rate in rates
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)
