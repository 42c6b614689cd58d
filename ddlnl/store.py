"""Records and artefacts on disk: atomic, checksummed, keyed by content.

    store/records/cell/<key>.json       one finished cell: configuration, hashes, accuracies, costs
    store/records/<kind>/<key>.json     a finished step of a cell, so that a killed cell does not repeat it
    store/artefacts/<key>.safetensors   experts, distilled sets, fitted preprocessing
    store/artefacts/<key>/...           the same for artefacts of many files: expert trajectories
    store/progress/<key>.safetensors    the last state of a loop that is under way
    store/damaged/                      files that failed their checksum, set aside with a warning

A write is a temporary file, fsync, rename. A file that fails its checksum is named; who can compute it again sets it
aside and does, everybody else does without it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import filelock
import pandas as pd
import platformdirs
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ddlnl.errors import DamagedError, InputError, reason
from ddlnl.files import remove_leftovers, replacing
from ddlnl.places import of_user, path_of

FORMAT = 2
"""What is written. Format 1 is read too: its checksums cover the body alone, those since 2 also the format's number, so
that a damaged number is not taken for another format."""
READ = (1, FORMAT)
PATIENCE = 30.0
"""For how many seconds a lock is waited for in silence."""
SHARE = 50
"""A loop goes on for at least so many times as long as its last state took to save: 2 % of the time go into saving."""
_ABSENT = (FileNotFoundError, NotADirectoryError)
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_Read = TypeVar("_Read")
_CELL_COLUMNS_FIRST = ["dataset", "noise", "rate", "imbalance", "method", "ipc", "seed", "profile"]
_COLUMNS_OF_NO_CELLS = [
    *_CELL_COLUMNS_FIRST,
    *(f"{what}_{rule}" for what in ("accuracy", "std") for rule in ("last", "validation", "best_on_test")),
    *("students", "seconds"),
]


def key_of(description: Any) -> str:
    """20 hex digits that name a JSON-able description, independent of the order of its keys."""
    text = json.dumps(description, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _covered(form: int, text: str) -> bytes:
    """What the checksum of a file in this format begins with."""
    return (text if form == 1 else f"format {form}\n{text}").encode()


def _digest(form: int, tensors: Mapping[str, Tensor], meta: str) -> str:
    digest = hashlib.sha256(_covered(form, meta))
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Tensors and a JSON-able description as one checksummed safetensors file; equal ones give equal bytes."""
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta, sort_keys=True, allow_nan=False)
    header = {"format": str(FORMAT), "meta": text, "digest": _digest(FORMAT, on_host, text)}
    with replacing(path) as file:
        for part in _with_sorted_header(safetensors.torch.save(on_host, metadata=header)):
            file.write(part)


def _with_sorted_header(whole: bytes) -> tuple[bytes, bytes, memoryview]:
    """The parts of the same safetensors file with the keys of its header in order: the library shuffles them."""
    data = 8 + int.from_bytes(whole[:8], "little")
    header = json.dumps(json.loads(whole[8:data]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data is aligned to 8 bytes
    return len(header).to_bytes(8, "little"), header, memoryview(whole)[data:]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote. Raises `DamagedError` if the file is not exactly that, `InputError` if it is, in a
    format that this version does not know."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, ValueError) as error:
        raise DamagedError(f"{path} is not a readable safetensors file ({error}).") from error
    form, meta = header.get("format", ""), header.get("meta", "")
    plain = form.isdecimal() and len(form) < 10  # of thousands of digits Python makes no number
    if not plain or header.get("digest") != _digest(int(form), tensors, meta):
        raise DamagedError(f"{path} does not match its checksum.")
    _require_known(path, int(form))
    try:
        return tensors, json.loads(meta)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} holds no readable description ({reason(error)}).") from error


def _require_known(path: Path, form: int) -> None:
    """Raise `InputError` for a whole file of another version, which must be neither set aside nor replaced."""
    if form not in READ:
        known = " and ".join(map(str, READ))
        raise InputError(
            f"{path} has format {form}, and this version reads the formats {known}: install the ddlnl that wrote it (a "
            "newer one reads older stores), or name another folder as store_dir (or $DDLNL_STORE)."
        )


def default_directory() -> Path:
    """Where results go unless told otherwise: $DDLNL_STORE, else the user's data directory.

    Raises `InputError` where there is neither.
    """
    if named := os.environ.get("DDLNL_STORE"):
        return path_of(named, "folder $DDLNL_STORE")
    found = of_user(platformdirs.user_data_dir)
    if found is None:
        raise InputError("This user has no home folder for results; name a folder as store_dir (or $DDLNL_STORE).")
    return found


class Store:
    """One folder of records and artefacts; safe for several processes at once."""

    def __init__(self, directory: str | Path | None = None) -> None:
        self.root = default_directory() if directory is None else path_of(directory, "folder store_dir")

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        """The finished record, or None where there is none (or it was damaged, which is reported and set aside).

        For code that computes what is missing; other code has `shown`. Raises `InputError` for a record of a format
        that this version does not read.
        """
        whole = self._whole(read_record, self.record_path(kind, key))
        return None if whole is None else whole["body"]

    def record_path(self, kind: str, key: str) -> Path:
        return self.root / "records" / kind / f"{key}.json"

    def save_record(self, kind: str, key: str, body: Mapping[str, Any]) -> None:
        text = json.dumps(body, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(_covered(FORMAT, text)).hexdigest()
        whole = {"format": FORMAT, "digest": digest, "body": json.loads(text)}
        with replacing(self.record_path(kind, key)) as file:
            file.write(json.dumps(whole, indent=1).encode())

    def tensors(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """An artefact and its description, or None."""
        return self.read(self.artefact_path(key))

    def artefact_path(self, key: str) -> Path:
        return self.root / "artefacts" / f"{key}.safetensors"

    def read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors of a file of this store, or None where there is none (or it was damaged: reported, set aside)."""
        return self._whole(read_tensors, path)

    def compute(self, key: str, make: Callable[[], Mapping[str, Tensor]], meta: Mapping[str, Any]) -> dict[str, Tensor]:
        """The artefact's tensors, made now if they are not there; a second process waits instead of making them too."""
        with self.lock(key):
            found = self.tensors(key)
            if found is None:
                write_tensors(self.artefact_path(key), make(), meta)
                found = self.tensors(key)
        return found[0]

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Only one process is inside at a time; the system lets the next one in when its holder dies.

        Who waits long is told so on standard error. Raises `InputError` where the file system has no such locks: a file
        in their place would outlive a holder that is killed, and everybody else would wait for ever.
        """
        path = self.root / "locks" / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, fallback_to_soft=False)
        try:
            _acquire(lock)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise InputError(
                f"The file system of the store {self.root} has no locks ({error.strerror}), and they keep processes "
                "apart; name a folder on another one as store_dir (or $DDLNL_STORE)."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def progress(self, key: str, interval: float = 20.0) -> Progress:
        return Progress(self, self.root / "progress" / f"{key}.safetensors", interval)

    def forget_progress(self, prefix: str) -> None:
        """Drop the states of loops whose results are safely in the store: those under keys that begin with `prefix`."""
        folder = self.root / "progress"
        for path in folder.glob(f"{prefix}*.safetensors"):
            path.unlink(missing_ok=True)
        remove_leftovers(folder, f"{prefix}*")

    def _whole(self, read: Callable[[Path], _Read], path: Path) -> _Read | None:
        """What `read` finds in a file, or None where there is none or a damaged one, which is set aside."""
        with contextlib.suppress(*_ABSENT, DamagedError):
            return read(path)
        if not path.exists():
            return None
        with self.lock("damaged"):
            try:
                return read(path)  # another process may have set it aside meanwhile, and made it again
            except _ABSENT:
                return None
            except DamagedError as error:
                place = self.root / "damaged" / f"{path.name}.{time.time_ns()}"
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
                warnings.warn(f"{error} It was moved to {place} and is computed again.", stacklevel=3)
                return None


def _acquire(lock: filelock.BaseFileLock) -> None:
    """Take the lock, however long it takes."""
    began = datetime.datetime.now().strftime("%H:%M:%S")
    try:
        lock.acquire(timeout=PATIENCE)
    except filelock.Timeout:
        print(f"Waiting since {began} for {lock.lock_file}, which another process holds.", file=sys.stderr, flush=True)
        lock.acquire()


def shown(read: Callable[[Path], _Read], path: Path) -> _Read | None:
    """What `read_record` or `read_tensors` finds in a file of a store, for code that computes nothing.

    None where there is no file, or a damaged one, which is named in a warning and left where it is.
    """
    try:
        return read(path)
    except _ABSENT:
        return None
    except DamagedError as error:
        warnings.warn(f"{error} It is left out; the next study that needs it computes it again.", stacklevel=3)
        return None


class Progress:
    """The last state of a loop, and the seconds the loop has taken in all.

    It is written at most every `interval` seconds, and more rarely where that takes long (`SHARE`); 0 is at every step.
    aside: wall-clock seconds that went by in `paused`, which `seconds` leaves out.
    """

    def __init__(self, store: Store, path: Path, interval: float) -> None:
        self.store, self.path, self.interval = store, path, interval
        self.took = 0.0
        self.started = self.saved_at = time.monotonic()
        self.before = self.aside = 0.0

    @property
    def seconds(self) -> float:
        """Wall-clock seconds, including those of killed processes up to the state that was resumed."""
        return self.before + time.monotonic() - self.started

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """(finished steps, state), or None at the start."""
        found = self.store.read(self.path)
        if found is None:
            return None
        self.before, self.aside = found[1]["seconds"], found[1].get("aside", 0.0)  # states of before have no "aside"
        return found[1]["step"], found[0]

    def save(self, step: int, state: Callable[[], dict[str, Tensor]]) -> None:
        """Write `state()` unless the last write was too short a while ago."""
        began = time.monotonic()
        if began - self.saved_at >= (self.interval and max(self.interval, SHARE * self.took)):
            write_tensors(self.path, state(), {"step": step, "seconds": self.seconds, "aside": self.aside})
            self.saved_at = time.monotonic()
            self.took = self.saved_at - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count the seconds inside in `aside`."""
        began = time.monotonic()
        yield
        away = time.monotonic() - began
        self.started += away
        self.aside += away


def read_record(path: Path) -> dict[str, Any]:
    """{"format", "digest", "body"} of a record. Raises `DamagedError` if it is not as it was written, `InputError` if
    it is, in a format that this version does not know."""
    try:
        whole = json.loads(path.read_text())
        form, covered = whole["format"], json.dumps(whole["body"], sort_keys=True)
        if type(form) is not int or whole["digest"] != hashlib.sha256(_covered(form, covered)).hexdigest():
            raise DamagedError(f"{path} does not match its checksum.")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is not a readable record ({error}).") from error
    _require_known(path, form)
    return whole


def table(store_dir: str | Path | None = None, kind: str = "cell") -> pd.DataFrame:
    """Every finished cell of a store, one row each; columns are the fields of the record, accuracies fractions of 1.

    kind: of the records; "transfer" are those of `ddlnl.transfer`.
    """
    store = Store(store_dir)
    found = (shown(read_record, path) for path in sorted(store.record_path(kind, "").parent.glob("*.json")))
    return frame([whole["body"] for whole in found if whole is not None])


def frame(records: list[dict[str, Any]]) -> pd.DataFrame:
    """Records as a DataFrame, the columns that name a cell first.

    `confusion` is that of the students of the last checkpoint, None in records from before it was kept.
    """
    records = [record | {"confusion": record.get("curves", [{}])[-1].get("confusion")} for record in records]
    rows = pd.DataFrame.from_records(records, columns=None if records else _COLUMNS_OF_NO_CELLS)
    first = [name for name in _CELL_COLUMNS_FIRST if name in rows.columns]
    return rows[first + [name for name in rows.columns if name not in first]]
