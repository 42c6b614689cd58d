"""Compile the core once per machine: csrc/ becomes libraries in a cache folder, where pip has not built them.

A finished library is one folder, with its checksum, that is renamed into place, so it is there as a whole or not at
all. The lock is the system's own and ends with the process that holds it. This module knows nothing of torch but where
it lies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

SECONDS = 50
"""How long a process waits for a build, its own or another's, before it goes on without."""
OLDEST_CAPABILITY = (8, 0)
"""The compute capability of the oldest GPUs that the kernels for CUDA are written for."""
PATIENCE = 3600
"""For how many seconds a build that failed with one compiler is not tried again."""


class Unbuilt(Exception):
    """There is no usable core; the message completes the sentence `The compiled core ...`."""


@dataclass(frozen=True)
class Torch:
    """The installed torch: `torch.__version__`, its package folder, and whether it is a CUDA build."""

    version: str
    root: Path
    cuda: bool


@dataclass(frozen=True)
class Cuda:
    """nvcc and the compute capabilities of this machine's GPUs, such as "90"."""

    nvcc: str
    capabilities: tuple[str, ...]


def obtain(sources: Path, torch: Torch) -> tuple[list[Path], str, str]:
    """The libraries built from `sources`, the CPU's first; what had to be repaired; why one for CUDA is lacking.

    The two sentences are mostly empty. Libraries are kept in `$DDLNL_BUILD_DIR` or the user's cache folder, each in a
    folder of its own, so that one for CUDA that fails or takes too long holds the CPU's up in no process. Raises
    Unbuilt where there is none for the CPU, after `SECONDS` at the latest.
    """
    deadline = time.monotonic() + SECONDS
    core, repaired = _obtain(sources, torch, None, deadline)
    cuda = cuda_for(sources, torch)
    if cuda is None:
        return [core], repaired, ""
    try:
        kernels, repaired_too = _obtain(sources, torch, cuda, deadline)
    except Unbuilt as unfit:
        return [core], repaired, str(unfit)
    return [core, kernels], "; ".join(filter(None, (repaired, repaired_too))), ""


def _obtain(sources: Path, torch: Torch, cuda: Cuda | None, deadline: float) -> tuple[Path, str]:
    """One library, for CUDA or else for the CPU, and what had to be repaired for it."""
    root = _root()
    try:
        folder = root / _key(sources, torch, cuda)
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(root)
        _check_private(folder)
        if stored := _stored(folder):
            return stored, ""
        wait = max(0.0, deadline - time.monotonic())
        with filelock.FileLock(f"{folder}.lock", timeout=wait, fallback_to_soft=False):
            repaired = _set_aside_damaged(folder)
            if not folder.exists():  # otherwise another process has built it meanwhile
                _build(folder, sources, torch, cuda, deadline - time.monotonic())
            if stored := _stored(folder):
                return stored, repaired
        raise Unbuilt(f"in {folder} changed right after it was compiled")
    except filelock.Timeout:
        raise Unbuilt(f"is still being compiled by another process after {SECONDS} s") from None
    except (OSError, ValueError) as error:  # a file system without locks; a file in csrc/ that is no JSON
        raise Unbuilt(f"cannot be compiled into {root} ({error})") from error


def _root() -> Path:
    """Where finished libraries are kept."""
    try:
        named = os.environ.get("DDLNL_BUILD_DIR") or Path(platformdirs.user_cache_dir("ddlnl")) / "core"
        return Path(named).expanduser()
    except RuntimeError as error:  # a user without $HOME whom the system does not know either
        raise Unbuilt(f"is not built and has no folder, which DDLNL_BUILD_DIR could name ({error})") from error


def _key(sources: Path, torch: Torch, cuda: Cuda | None) -> str:
    """Everything that a finished build depends on; not the compiler, so that a machine without one can use it."""
    digest = hashlib.sha256(repr((torch.version, sys.platform, platform.machine(), cuda)).encode())
    for file in sorted(sources.iterdir()):
        if file.suffix in (".cpp", ".cu", ".h", ".json"):
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:20]


def _check_private(folder: Path) -> None:
    """Code from `folder` will run in this process: nobody else may have put it there."""
    if os.name != "posix" or not folder.exists():
        return
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise Unbuilt(
            f"is not taken from {folder}, because other users own it or can write to it:"
            f" `chmod go-w {shlex.quote(str(folder))}` if it is yours, or set DDLNL_BUILD_DIR to a folder that is"
        )


def _stored(folder: Path) -> Path | None:
    """The library in `folder`; None where there is no build or a damaged one."""
    library = next(folder.glob("_C*.so"), None)
    return library if library and is_whole(library) else None


def is_whole(library: Path) -> bool:
    """Whether a library is byte for byte the one that was built, by the checksum in SHA256SUMS beside it.

    What merely loads could still crash the process, later and elsewhere: one flipped bit is enough. The checksum takes
    some milliseconds. A tool that rewrites a library (strip, auditwheel) has to write its checksum anew, with
    `sha256sum _C*.so > SHA256SUMS`.
    """
    try:
        return _checksum_line(library) in (library.parent / "SHA256SUMS").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return False


def _checksum_line(library: Path) -> str:
    return f"{hashlib.sha256(library.read_bytes()).hexdigest()}  {library.name}"


def _set_aside_damaged(folder: Path) -> str:
    if not folder.exists() or _stored(folder):
        return ""
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    return f"in {folder} was damaged, set aside as {aside.name} and compiled again"


def _build(folder: Path, sources: Path, torch: Torch, cuda: Cuda | None, seconds: float) -> None:
    """Compile in a fresh folder beside `folder`, then rename. The caller holds the lock."""
    for left_behind in folder.parent.glob(f"{folder.name}.attempt-*"):  # by a process that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    compiler, ninja = shlex.quote(cuda.nvcc) if cuda else _compiler(), _ninja()
    failed = folder.with_name(f"{folder.name}.failed-{hashlib.sha256(compiler.encode()).hexdigest()[:8]}")
    if failed.exists() and 0 <= time.time() - failed.stat().st_mtime < PATIENCE:  # not one of a clock that was ahead
        raise Unbuilt(f"could not be compiled a while ago ({failed} says why; remove it to try again)")
    attempt = Path(tempfile.mkdtemp(prefix=f"{folder.name}.attempt-", dir=folder.parent))
    try:
        (attempt / "done").mkdir(mode=0o700)
        (attempt / "build.ninja").write_text(_plan(sources, torch, compiler, cuda))
        ended = _run([ninja, "-k", "0"], attempt, seconds)
        library = attempt / "done" / ("_C_cuda.so" if cuda else "_C.so")
        if not library.exists():
            if ended or seconds > 0.9 * SECONDS:  # a build that had little time left says nothing about the next
                os.replace(attempt / "log", failed)
            how = f"did not compile ({failed} says why)" if ended else f"did not compile within {SECONDS} s"
            raise Unbuilt(how)
        (attempt / "done" / "SHA256SUMS").write_text(_checksum_line(library) + "\n")
        os.replace(attempt / "done", folder)
        failed.unlink(missing_ok=True)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def _compiler() -> str:
    """The C++ compiler as a shell command: `$CXX`, or c++."""
    wanted = os.environ.get("CXX") or "c++"
    try:
        words = shlex.split(wanted)
    except ValueError as error:
        raise Unbuilt(f"is not built and CXX={wanted!r} is not a command ({error})") from error
    if not words or not shutil.which(words[0]):
        raise Unbuilt(f"is not built and there is no C++ compiler ({wanted!r}) to build it")
    return shlex.join(words)


def _ninja() -> str:
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("ninja", path=beside)
    if not found:
        raise Unbuilt("is not built and there is no ninja to build it")
    return found


def cuda_for(sources: Path, torch: Torch) -> Cuda | None:
    """What a library for CUDA is compiled with and for; None where torch, nvcc, a GPU or the sources are not there."""
    return _cuda() if torch.cuda and any(sources.glob("*.cu")) else None


def _cuda() -> Cuda | None:
    """nvcc and the GPUs that the kernels are written for; None where there is no nvcc or no such GPU.

    The driver's tool is asked, because torch would set up CUDA in this process, which then could not fork.
    """
    places = [os.path.join(os.environ.get("CUDA_HOME", ""), "bin"), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    nvcc, tool = shutil.which("nvcc", path=os.pathsep.join(places)), shutil.which("nvidia-smi")
    if not nvcc or not tool:
        return None
    question = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    found = {tuple(map(int, version)) for version in re.findall(r"^(\d+)\.(\d)\s*$", answer, re.MULTILINE)}
    served = tuple(f"{major}{minor}" for major, minor in sorted(found) if (major, minor) >= OLDEST_CAPABILITY)
    return Cuda(nvcc, served) if served else None


def _plan(sources: Path, torch: Torch, compiler: str, cuda: Cuda | None) -> str:
    """build.ninja: objects, and a library that gets its name in done/ once it is complete."""
    flags = json.loads((sources / "flags.json").read_text())
    include = [f"-I{torch.root / 'include'}", f"-I{torch.root / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{torch.root / 'lib'}", "-lc10", "-ltorch", "-ltorch_cpu"]
    if cuda:
        targets = [f"-gencode=arch=compute_{c},code=sm_{c}" for c in cuda.capabilities]
        compile_flags = [*flags["cuda"], "-Xcompiler=-fPIC", *targets, *include]
        lines = _library("_C_cuda", sorted(sources.glob("*.cu")), compiler, compile_flags, [*libraries, "-ltorch_cuda"])
    else:
        lines = _library("_C", sorted(sources.glob("*.cpp")), compiler, [*flags["cpu"], "-fPIC", *include], libraries)
    return "\n".join(lines) + "\n"


def _library(name: str, sources: list[Path], compiler: str, flags: list[str], libraries: list[str]) -> list[str]:
    def command(*words: str) -> str:
        return f"{compiler} {shlex.join(words)}".replace("$", "$$")

    objects = [f"{name}-{source.stem}.o" for source in sources]
    return [
        f"rule {name}-compile",
        f"  command = {command(*flags)} -c $in -o $out",
        f"rule {name}-link",
        f"  command = {command('-shared')} $in {shlex.join(libraries).replace('$', '$$')} -o {name}.part"
        f" && mv {name}.part $out",
        *(f"build {o}: {name}-compile {_path(source)}" for o, source in zip(objects, sources, strict=True)),
        f"build done/{name}.so: {name}-link {' '.join(objects)}",
    ]


def _path(path: Path) -> str:
    return str(path.resolve()).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _run(command: list[str], folder: Path, seconds: float) -> bool:
    """Run in `folder` with its output in `log`; whether it ended by itself. Nothing of it outlives this call."""
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            process.wait(timeout=max(0.0, seconds))
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                process.terminate()  # ninja passes it on to its compilers, which need not heed it
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=3)
                _kill_session(process.pid)
                with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk cannot be ended
                    process.wait(timeout=3)


def _kill_session(session: int) -> None:
    """End whatever runs in the session that a process began, where ninja makes each compiler a process group."""
    groups = [session]
    for status in Path("/proc").glob("[0-9]*/stat"):  # elsewhere than on Linux only ninja itself is found
        with contextlib.suppress(OSError):  # it ended meanwhile
            _, _, group, its_session, *_ = status.read_text().rpartition(")")[2].split()
            groups += [int(group)] if int(its_session) == session else []
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
