"""The compiled core: find or build the libraries from csrc/ and register their operators with torch, once."""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from ddlnl import _build
from ddlnl.errors import InputError

CORE_VERSION = 4
"""The schemas and tensors this package calls with; DDLNL_CORE_VERSION in csrc/common.h is the same number."""

_MARKER = b"ddlnl-core-version:"
_ADVICE = "`pip install --verbose --no-build-isolation -e .` builds it and shows why it may fail"
_FLOATING = frozenset((torch.float32, torch.float64, torch.bfloat16))


@dataclass(frozen=True)
class Backend:
    """name: `compiled+cuda`, `compiled` (kernels for the CPU) or `reference` (plain PyTorch); reason: one sentence."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@functools.cache
def backend() -> Backend:
    """Which operators run, and why. The first call registers the compiled ones as `torch.ops.ddlnl.*`.

    `DDLNL_EXTENSION=off` leaves them out. Otherwise they come from the libraries that pip built beside this file or,
    where those are missing or unusable, from a build in the cache folder that the first process makes (see
    `ddlnl._build`). A library is loaded only where it matches the checksum beside it. Unusable libraries, a build that
    fails and a GPU left without kernels give one RuntimeWarning; this always returns within about a minute. Raises
    InputError where DDLNL_EXTENSION is neither `on`, `off` nor empty.
    """
    wanted = os.environ.get("DDLNL_EXTENSION") or "on"
    if wanted not in ("on", "off"):
        raise InputError(f"DDLNL_EXTENSION is {wanted!r}; it can be 'on' (the default) or 'off'.")
    if wanted == "off":
        return Backend("reference", "DDLNL_EXTENSION is 'off'.")
    found, problem = _find(Path(__file__).parent)
    if problem:
        warnings.warn(f"The compiled core {problem}.", RuntimeWarning, stacklevel=2)
    return found


def load() -> bool:
    """Register the compiled operators, once; return whether they are there."""
    return backend().name != "reference"


def active(tensor: torch.Tensor) -> bool:
    """Whether compiled kernels serve this tensor: floating, on a device that the loaded libraries cover."""
    if tensor.is_cpu:
        return load() and tensor.dtype in _FLOATING
    covered = tensor.is_cuda and backend().name == "compiled+cuda"
    return covered and tensor.dtype in _FLOATING and _runs_kernels(tensor.device)


def fits(tensor: torch.Tensor, numbers: float) -> bool:
    """Whether so many numbers of the type that the kernels compute in find room in the shared memory of a CUDA block,
    with 1 KB to spare; a CPU takes any size."""
    if not tensor.is_cuda:
        return True
    width = torch.promote_types(tensor.dtype, torch.float32).itemsize
    return width * numbers + 1024 <= torch.cuda.get_device_properties(tensor.device).shared_memory_per_block_optin


@functools.cache
def _runs_kernels(gpu: torch.device) -> bool:
    return torch.cuda.get_device_capability(gpu) >= _build.OLDEST_CAPABILITY


def _find(package: Path) -> tuple[Backend, str]:
    """Register the libraries in the package folder, or else those of a build; also what is to be warned of."""
    broken = ""
    if prebuilt := _libraries(package):
        try:
            return _register(prebuilt, _lacking(package, prebuilt))
        except _build.Unbuilt as unfit:
            broken = str(unfit)
    try:
        libraries, repaired, lacking = _build.obtain(_sources(package), _this_torch())
        found, problem = _register(libraries, lacking)
    except _build.Unbuilt as unfit:
        reason = f"{broken}; a new one {unfit}" if broken else str(unfit)
        return (
            Backend("reference", f"The compiled core {reason}."),
            f"{reason}, so the slower PyTorch twins are used; {_ADVICE}",
        )
    if broken:
        broken += f"; one compiled in {libraries[0].parent} takes its place; {_ADVICE}"
    return found, "; ".join(filter(None, (broken, repaired, problem)))


def _libraries(folder: Path) -> list[Path]:
    """_C before _C_cuda: the schemas before the kernels for them. None without _C."""
    found = sorted(folder.glob("_C*.so"))
    return found if found and found[0].name.startswith("_C.") else []


def _lacking(package: Path, prebuilt: list[Path]) -> str:
    """What to say of a library for CUDA that pip did not build, where this machine has everything for one."""
    if len(prebuilt) > 1:
        return ""
    try:
        wanted = _build.cuda_for(_sources(package), _this_torch())
    except _build.Unbuilt:
        return ""
    return f"is not built ({_ADVICE})" if wanted else ""


def _sources(package: Path) -> Path:
    """csrc/, which lies in an installed package or beside one that is run from a checkout."""
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "ops.cpp").is_file():
            return folder
    raise _build.Unbuilt("is not built and its sources are not there")


def _this_torch() -> _build.Torch:
    return _build.Torch(torch.__version__, Path(torch.__file__).parent, torch.version.cuda is not None)


def _register(libraries: list[Path], lacking: str) -> tuple[Backend, str]:
    """Load the CPU's library and, best effort, CUDA's; also what is to be warned of. Raises Unbuilt.

    `lacking` says why there is none for CUDA, where one was wanted. Every doubt about a library is settled before it
    is loaded: operators cannot be registered a second time.
    """
    core, *more = libraries
    _load(core)
    where = f"the compiled core is {core}"
    try:
        for library in more:
            _load(library)
    except _build.Unbuilt as unfit:
        lacking = str(unfit)
    if lacking:
        return Backend("compiled", f"{where}; for CUDA it {lacking}."), f"for CUDA {lacking}, so only the CPU uses it"
    return Backend("compiled+cuda" if more else "compiled", f"{where}{'' if more else ', without CUDA kernels'}."), ""


def _load(library: Path) -> None:
    """A damaged library is refused unread: loading it could end the process, where no `except` helps."""
    if not _build.is_whole(library):
        raise _build.Unbuilt(f"in {library} does not match the checksum beside it, or has none")
    try:
        _check_version(library)
        torch.ops.load_library(library)
    except OSError as error:
        told = str(error.__cause__ or error)  # torch's own sentence has only the path
        raise _build.Unbuilt(f"does not load ({' '.join(told.split())})") from error


def _check_version(library: Path) -> None:
    """Refuse a library built from other schemas, by the marker in its bytes: loading it would register them."""
    _, marked, rest = library.read_bytes().partition(_MARKER)
    version = rest[:20].partition(b"\0")[0] if marked else b"?"
    if version != str(CORE_VERSION).encode():
        raise _build.Unbuilt(f"in {library} is version {version.decode('ascii', 'replace')}, not {CORE_VERSION}")
