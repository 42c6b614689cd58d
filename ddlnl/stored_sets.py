"""Distilled sets in a store, whose fitted preprocessing (75 MB for CIFAR) is an artefact that many sets share."""

from __future__ import annotations

from ddlnl.distilled import DistilledSet
from ddlnl.store import Store, read_tensors, shown, write_tensors


def save(store: Store, name: str, small: DistilledSet, fitted: str) -> None:
    """Keep a set as the artefact `name`; `fitted` is that with its preprocessing, written here where it was lost."""
    if not store.artefact_path(fitted).exists():
        write_tensors(store.artefact_path(fitted), small.preprocessing.tensors(), {"preprocessing": fitted})
    store.tensors(name)  # a damaged one is set aside and not written over
    tensors, meta = small.state_without_preprocessing()
    write_tensors(store.artefact_path(name), tensors, meta | {"fitted": fitted})


def read(store: Store, name: str) -> DistilledSet | None:
    """What `save` kept, or None where the set or its preprocessing is not there (or damaged)."""
    found = shown(read_tensors, store.artefact_path(name))
    if found is None:
        return None
    tensors, meta = found
    if "fitted" in meta:  # a set kept before they were apart has its own
        fitted = shown(read_tensors, store.artefact_path(meta.pop("fitted")))
        if fitted is None:
            return None
        tensors |= {f"preprocessing.{part}": value for part, value in fitted[0].items()}
    return DistilledSet.from_state(tensors, meta)
