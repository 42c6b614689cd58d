"""Made-up outcomes of cells: distilled sets with given labels under a real noise, for tests of labels and pictures."""

from __future__ import annotations

import numpy as np
import torch
from small import image_set, profile

from ddlnl import noise, preprocess
from ddlnl.cells import Cell
from ddlnl.distilled import DistilledSet
from ddlnl.labels import Outcome


def distilled(labels, ipc: int = 1, side: int = 8, channels: int = 3, names=None, **changes) -> DistilledSet:
    """A set of random images with these labels (n, K)."""
    labels = torch.as_tensor(np.asarray(labels)).float()
    images = torch.from_numpy(np.random.default_rng(1).random((len(labels), channels, side, side), dtype=np.float32))
    names = names or tuple(f"class {label}" for label in range(labels.shape[1]))
    fitted = preprocess.fit(image_set(side=side, channels=channels).images, "normalise")
    kept = {"images": images, "labels": labels, "class_names": tuple(names), "method": "datm", "ipc": ipc}
    return DistilledSet(**kept | {"preprocessing": fitted, "protocol": profile().student} | changes)


def outcome(
    spec: str, labels, confusion, ipc: int = 1, seed: int = 0, initial=None, dataset="digits", **kinds
) -> Outcome:
    """A cell of DATM that saw `confusion` and made `labels` (n, K), from `initial` ones if given."""
    spec = str(noise.parse(spec))
    cell = Cell(dataset, spec, kinds.get("method", "datm"), ipc, seed, "demo")
    before = None if initial is None else distilled(initial, ipc, **kinds)
    return Outcome(cell, np.asarray(confusion), distilled(labels, ipc, **kinds), before)


def conditions(dataset="digits", classes: int = 10, human: int = 0, **kinds) -> list[Outcome]:
    """Clean, every rate of symmetric and asymmetric noise, and human labels, with labels that follow the noise."""
    specs = ["clean", *(f"{kind}:{rate}" for kind in ("symmetric", "asymmetric") for rate in (0.2, 0.4, 0.6, 0.8))]
    specs += [f"human:random{number}" for number in range(1, human + 1)]
    found = []
    for spec in specs:
        nominal = "symmetric:0.2" if spec.startswith("human") else spec
        confusion = np.rint(9000 * noise.transition_matrix(noise.parse(nominal), dataset, classes))
        labels = confusion / confusion.sum(1, keepdims=True)
        found.append(outcome(spec, labels, confusion, initial=labels, dataset=dataset, **kinds))
    return found
