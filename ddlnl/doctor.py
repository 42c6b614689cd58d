"""What this installation has, and what to do about each problem: versions, compiled core, devices, data, store.

It only reads: a damaged file is named and left where it is.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

import ddlnl
from ddlnl import _build, archives, datasets, files, ops, store
from ddlnl.errors import DamagedError, InputError

PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "papermill", "nbconvert", "jupyterlab")
ROOM = 2**30  # bytes that a study should find free


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` is what to do, empty where nothing is wrong."""

    what: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.found}" + (f"\n    -> {self.advice}" if self.advice else "")


def examine(data_dir: str | Path | None = None, store_dir: str | Path | None = None) -> Iterator[Finding]:
    """Every finding, one after another; reading all archives and all files of a large store takes a while."""
    yield from _versions()
    yield from _core()
    for name in datasets.NAMES:
        yield _dataset(name, data_dir)
    yield from _store(store.Store(store_dir).root)


def _versions() -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        try:
            yield Finding(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, "not installed", f"install it with `pip install {name}`, or run `make install`.")
    try:
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError) as error:
        advice = "install a torch and a torchvision that belong together; environment.yml names such a pair."
        yield Finding("torch with torchvision", " ".join(str(error).split()), advice)


def _core() -> Iterator[Finding]:
    backend = ops.backend()
    slow = backend.name == "reference" and os.environ.get("DDLNL_EXTENSION") != "off"
    advice = "`pip install --verbose --no-build-isolation -e .` builds it and shows why it may fail." if slow else ""
    yield Finding("compiled core", str(backend), advice)
    for library in sorted(Path(ddlnl.__file__).parent.glob("_C*.so")):
        if not _build.is_whole(library):
            advice = "`pip install --no-build-isolation -e .` builds it anew; it is not loaded meanwhile."
            yield Finding("damaged", f"{library} does not match the checksum beside it, or has none", advice)
    yield Finding("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    bare = bool(names) and backend.name == "compiled"
    advice = "the operators have no CUDA kernels here: install the CUDA toolkit of your torch and build again."
    yield Finding("GPU", ", ".join(names) or "none (the paper profile needs one)", advice if bare else "")


def _dataset(name: str, data_dir: str | Path | None) -> Finding:
    path = archives.find(name, data_dir)
    if path is None and name != "digits":
        folders = ", ".join(map(str, archives.folders(data_dir)))
        return Finding(f"data {name}", f"no archive in {folders}; README, section Data, says how to get it")
    try:
        data = datasets.load(name, data_dir)
    except InputError as error:
        return Finding(f"data {name}", str(error), f"move {path} away and fetch or import it again.")
    human = f", human labels {', '.join(data.train.human)}" if data.train.human else ""
    place = f" in {path}" if path else " (installed with scikit-learn)"
    return Finding(f"data {name}", f"{len(data.train)} training and {len(data.test)} test images{human}{place}")


def _store(root: Path) -> Iterator[Finding]:
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK):
        advice = "give store_dir (or $DDLNL_STORE) a folder that you may write to."
        yield Finding("store", f"{root} cannot be written to", advice)
    free = shutil.disk_usage(there).free
    advice = "make room, or give store_dir (or $DDLNL_STORE) a folder on another disk." if free < ROOM else ""
    yield Finding("room for the store", f"{free / 2**30:.1f} GiB free", advice)
    records, artefacts = sorted(root.glob("records/*/*.json")), sorted(root.glob("artefacts/**/*.safetensors"))
    yield Finding("store", f"{root}: {len(records)} records, {len(artefacts)} artefacts")
    yield from _damaged(records, artefacts)
    aside = sorted(path.name for path in root.glob("damaged/*"))
    if aside:
        advice = f"they were replaced by new ones; look at them, then delete {root / 'damaged'}."
        yield Finding("set aside as damaged", ", ".join(aside), advice)
    left = sorted(str(path) for path in root.rglob(".*.tmp") if not files.is_being_written(path))
    if left:
        advice = "a process was killed while it saved them; delete them, unless another machine is writing them now."
        yield Finding("halves of files", ", ".join(left), advice)


def _damaged(records: list[Path], artefacts: list[Path]) -> Iterator[Finding]:
    advice = "the next study that needs it sets it aside and computes it again; if files keep breaking, check the disk."
    other = "it is kept; install the ddlnl that wrote it, or use another store."
    reads = [(store.read_record, path) for path in records] + [(store.read_tensors, path) for path in artefacts]
    for read, path in reads:
        try:
            read(path)
        except DamagedError as error:
            yield Finding("damaged", str(error), advice)
        except InputError as error:
            yield Finding("other format", str(error), other)
