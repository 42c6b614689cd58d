"""Whatever is wrong with the compiled core, a program gets operators that work, soon, with one warning at most."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
import torch
import variants

from ddlnl import _build, _core, ops
from ddlnl.errors import InputError

ROOT = Path(__file__).parents[1]
needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")
THIS_TORCH = _core._this_torch()
MARKER = f"ddlnl-core-version:{_core.CORE_VERSION}"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package folder beside the sources of a core that compiles in no time and registers nothing; its own cache."""
    for name in ("DDLNL_EXTENSION", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DDLNL_BUILD_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "in a $place: this" / "ddlnl"  # characters that ninja and the shell give a meaning
    sources = folder.parent / "csrc"
    folder.mkdir(parents=True)
    sources.mkdir()
    (sources / "flags.json").write_text(json.dumps({"cpu": ["-O0"], "cuda": []}))
    write_core(sources, _core.CORE_VERSION)
    return folder


def write_core(sources: Path, version: int | str) -> None:
    text = f'extern "C" __attribute__((used)) const char marker[] = "ddlnl-core-version:{version}";\n'
    (sources / "ops.cpp").write_text(text)


def compiled_beside(package: Path, version: int | str = _core.CORE_VERSION) -> Path:
    """A library as pip would have built it."""
    write_core(package.parent / "csrc", version)
    library = package / "_C.abi3.so"
    subprocess.run(["c++", "-shared", "-fPIC", package.parent / "csrc" / "ops.cpp", "-o", library], check=True)
    write_core(package.parent / "csrc", _core.CORE_VERSION)
    variants.write_checksums(package)
    return library


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def obtain(package: Path) -> Path:
    (library,), repaired, lacking = _build.obtain(package.parent / "csrc", THIS_TORCH)
    assert repaired == lacking == ""
    return library


def cached(tmp_path: Path) -> Path:
    (library,) = (tmp_path / "cache").glob("*/_C.so")
    return library


def in_another_process(package: Path) -> subprocess.Popen[str]:
    """A process that obtains the core and prints the library; it imports no torch, so it starts at once."""
    code = (
        "import importlib.util, sys; from pathlib import Path;"
        f"spec = importlib.util.spec_from_file_location('b', {_build.__file__!r});"
        "b = sys.modules['b'] = importlib.util.module_from_spec(spec); spec.loader.exec_module(b);"
        f"torch = b.Torch({THIS_TORCH.version!r}, Path({str(THIS_TORCH.root)!r}), {THIS_TORCH.cuda});"
        f"print(b.obtain(Path({str(package.parent / 'csrc')!r}), torch)[0][0])"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)


# ---------------------------------------------------------------- a core that is not built


@needs_compiler
def test_a_core_that_pip_did_not_build_is_compiled_once_and_then_found_even_without_a_compiler(
    package, tmp_path, monkeypatch
):
    found, problem = _core._find(package)
    assert (found.name, problem) == ("compiled", "")
    assert str(cached(tmp_path)) in found.reason
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert _core._find(package) == (found, "")


@needs_compiler
def test_another_torch_and_other_sources_have_builds_of_their_own(package, tmp_path):
    builds = [obtain(package)]
    other = _build.Torch("0.0.1", THIS_TORCH.root, False)
    builds += _build.obtain(package.parent / "csrc", other)[0]
    (package.parent / "csrc" / "extra.h").write_text("// new")
    builds.append(obtain(package))
    assert len({library.parent for library in builds}) == 3
    assert all(library.exists() for library in builds)


@pytest.mark.parametrize("missing", ["compiler", "everything"])
def test_without_a_compiler_or_ninja_the_twins_run_and_the_reason_is_given(package, tmp_path, monkeypatch, missing):
    monkeypatch.setenv("PATH", "")
    if missing == "compiler":
        monkeypatch.setattr(_build, "_ninja", lambda: "ninja")
    else:
        monkeypatch.setattr(_build, "_compiler", lambda: "c++")
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found, problem = _core._find(package)
    assert found.name == "reference"
    assert ("no C++ compiler ('c++')" if missing == "compiler" else "no ninja") in found.reason
    assert "PyTorch twins are used; `pip install" in problem


def test_without_sources_the_twins_run(package):
    shutil.rmtree(package.parent / "csrc")
    assert _core._find(package)[0].reason == "The compiled core is not built and its sources are not there."


@pytest.mark.parametrize("place", ["/proc/nowhere", __file__])
def test_a_cache_that_cannot_be_written_leaves_the_twins(package, monkeypatch, place):
    monkeypatch.setenv("DDLNL_BUILD_DIR", place)
    found, _ = _core._find(package)
    assert found.name == "reference"
    assert f"cannot be compiled into {place}" in found.reason


@pytest.mark.skipif(os.name != "posix", reason="owners and modes of files are those of POSIX")
@pytest.mark.parametrize("place", ["the cache", "a build in it"])
@pytest.mark.parametrize("foreign", ["mode", "owner"])
@needs_compiler
def test_code_is_not_taken_from_a_folder_that_others_can_write_to(package, monkeypatch, place, foreign):
    build = obtain(package).parent
    folder = build.parent if place == "the cache" else build
    assert folder.stat().st_mode & 0o777 == 0o700
    if foreign == "mode":
        folder.chmod(0o720)
    else:
        real = Path.stat
        status = os.stat_result([*real(folder)[:4], os.getuid() + 1, *real(folder)[5:]])
        monkeypatch.setattr(Path, "stat", lambda path, **how: status if path == folder else real(path, **how))
    found, problem = _core._find(package)
    assert found.name == "reference"
    assert "other users own it or can write to it: `chmod go-w " in problem


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda sources, patch: patch.setenv("CXX", "g++ '-x"), r"CXX=.* is not a command \(No closing quotation\)"),
        (lambda sources, patch: (sources / "lost.h").symlink_to("nowhere"), r"cannot be compiled into .*lost\.h"),
        (lambda sources, patch: (sources / "flags.json").write_text("{"), "cannot be compiled into"),
    ],
)
def test_settings_and_sources_that_cannot_be_read_leave_the_twins(package, monkeypatch, spoil, told):
    spoil(package.parent / "csrc", monkeypatch)
    found, problem = _core._find(package)
    assert found.name == "reference"
    assert re.search(f"{told}.*, so the slower PyTorch twins are used", problem)


def test_an_empty_library_is_refused_even_with_its_own_checksum(tmp_path):
    library = tmp_path / "_C.abi3.so"
    library.touch()
    variants.write_checksums(tmp_path)
    with pytest.raises(_build.Unbuilt, match=r"is version \?, not"):
        _core._load(library)


@needs_compiler
def test_a_compiler_that_fails_is_quoted_in_a_file_and_not_asked_again_for_a_while(package, tmp_path, monkeypatch):
    (package.parent / "csrc" / "ops.cpp").write_text("#error this core is broken\n")
    found, _ = _core._find(package)
    (log,) = (tmp_path / "cache").glob("*.failed-*")
    assert found.reason == f"The compiled core did not compile ({log} says why)."
    assert "this core is broken" in log.read_text()
    assert not list((tmp_path / "cache").glob("*.attempt-*"))
    monkeypatch.setattr(_build, "_run", lambda *_: pytest.fail("it was compiled again"))
    assert "could not be compiled a while ago" in _core._find(package)[0].reason
    monkeypatch.setattr(_build, "_run", lambda *_: True)
    for written in (time.time() - _build.PATIENCE - 1, time.time() + 100):  # long ago, or before the clock was put back
        os.utime(log, (0, written))
        with pytest.raises(FileNotFoundError):  # it is tried again, and the stand-in leaves no log
            _build._build(log.with_name(log.name.partition(".")[0]), package.parent / "csrc", THIS_TORCH, None, 60)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells which processes there are")
@pytest.mark.parametrize("deaf", [False, True])
def test_a_compiler_that_hangs_is_ended_in_time_with_its_children(package, tmp_path, monkeypatch, deaf):
    monkeypatch.setattr(_build, "SECONDS", 1)
    compiler = f"{'trap : TERM;' if deaf else ''} sleep 60 & echo $$ $! > {tmp_path}/pids; while :; do sleep 1; done"
    monkeypatch.setenv("CXX", script(tmp_path / "cxx", compiler))
    start = time.monotonic()
    found, _ = _core._find(package)
    assert found.reason == "The compiled core did not compile within 1 s."
    assert time.monotonic() - start < 20
    for process in (tmp_path / "pids").read_text().split():
        deadline = time.monotonic() + 10
        while running(process):
            assert time.monotonic() < deadline, "the compiler still runs"
            time.sleep(0.02)


def running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---------------------------------------------------------------- other processes


@needs_compiler
def test_a_build_killed_on_the_way_does_not_stop_the_next(package, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", script(tmp_path / "cxx", f"echo $$ > {tmp_path}/pid; exec sleep 60"))
    process = in_another_process(package)
    wait_for(tmp_path / "pid")
    process.kill()
    process.communicate()
    monkeypatch.delenv("CXX")
    try:
        assert len(list((tmp_path / "cache").glob("*.attempt-*"))) == 1
        assert _core._find(package)[1] == ""
        assert not list((tmp_path / "cache").glob("*.attempt-*"))
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@needs_compiler
def test_a_lock_file_that_was_left_behind_holds_nobody_up(package, tmp_path):
    library = obtain(package)
    shutil.rmtree(library.parent)
    Path(f"{library.parent}.lock").touch()  # newer releases of filelock remove theirs
    assert obtain(package) == library


@needs_compiler
def test_two_processes_at_once_compile_once(package, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", script(tmp_path / "cxx", f'echo >> {tmp_path}/calls; sleep 0.3; exec c++ "$@"'))
    both = [in_another_process(package) for _ in range(2)]
    assert [process.communicate(timeout=50)[0].strip() for process in both] == [str(cached(tmp_path))] * 2
    assert (tmp_path / "calls").read_text() == "\n\n"  # one object, one library


def test_a_process_waits_for_another_s_build_only_so_long(package, tmp_path, monkeypatch):
    monkeypatch.setattr(_build, "SECONDS", 0.2)
    sources = package.parent / "csrc"
    key = _build._key(sources, THIS_TORCH, None)
    (tmp_path / "cache").mkdir(mode=0o700)
    with filelock.FileLock(tmp_path / "cache" / f"{key}.lock"):
        found, _ = _core._find(package)
    assert found.reason == "The compiled core is still being compiled by another process after 0.2 s."


def test_where_the_file_system_has_no_locks_nothing_is_compiled(package, tmp_path, monkeypatch):
    """A file in the place of a lock would outlive a process that is killed."""

    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    found, _ = _core._find(package)
    assert re.fullmatch(r"The compiled core cannot be compiled into .* \(.*Function not implemented\)\.", found.reason)


# ---------------------------------------------------------------- damage


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "no checksums", "bad checksums"])
def test_a_damaged_build_is_set_aside_and_made_anew_with_one_warning(package, tmp_path, damage):
    library = obtain(package)
    content, sums = library.read_bytes(), library.with_name("SHA256SUMS")
    changed = {"cut": content[:1000], "changed": content[:-99] + b"?" + content[-98:], "empty": b""}
    if damage in changed:
        library.unlink()
        library.write_bytes(changed[damage])
    elif damage == "no checksums":
        sums.unlink()
    else:
        sums.write_bytes(b"\xff\n")
    found, problem = _core._find(package)
    assert found.name == "compiled"
    assert re.fullmatch(r"in .* was damaged, set aside as .*\.damaged and compiled again", problem)
    assert Path(f"{library.parent}.damaged").exists()
    assert _core._find(package) == (found, "")


@needs_compiler
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda library: library.write_bytes(b"not a library" * 10), "does not match the checksum beside it"),
        (lambda library: library.write_bytes(b""), "does not match the checksum beside it"),
        (lambda library: os.truncate(library, library.stat().st_size - 100), "does not match the checksum beside it"),
        (lambda library: library.with_name("SHA256SUMS").unlink(), "or has none"),
        (lambda library: library.with_name("SHA256SUMS").write_bytes(b"\xff"), "or has none"),
        (lambda library: (library.unlink(), library.mkdir()), "does not match the checksum beside it"),
        (lambda library: compiled_beside(library.parent, 1), f"is version 1, not {_core.CORE_VERSION}"),
        (lambda library: compiled_beside(library.parent, "20"), f"is version 20, not {_core.CORE_VERSION}"),
        (lambda library: replaced(library, Path(torch._C.__file__).read_bytes()), r"is version \?"),
        (lambda library: replaced(library, MARKER.encode() + b"\0"), r"does not load \(.*"),
    ],
)
def test_a_library_from_pip_that_is_unusable_is_replaced_before_it_is_loaded(package, damage, complaint):
    library = compiled_beside(package)
    damage(library)
    found, problem = _core._find(package)
    assert found.name == "compiled"
    assert re.fullmatch(rf".*{complaint}.*; one compiled in .* takes its place; .*pip install.*", problem)


def replaced(library: Path, content: bytes) -> None:
    """Another library, whole as far as its checksum tells."""
    library.write_bytes(content)
    variants.write_checksums(library.parent)


@needs_compiler
def test_a_library_from_pip_that_needs_what_this_torch_lacks_is_replaced(package):
    library, source = package / "_C.abi3.so", package.parent / "needs.cpp"
    text = (package.parent / "csrc" / "ops.cpp").read_text()
    source.write_text(text + "extern int not_in_torch(); int use = not_in_torch();")
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", library], check=True)
    variants.write_checksums(package)
    found, problem = _core._find(package)
    assert found.name == "compiled"
    assert re.match(r"does not load \(.*not_in_torch.*\); one compiled in", problem)


@needs_compiler
def test_a_cuda_library_that_does_not_load_leaves_the_cpu_s(package):
    compiled_beside(package)
    (package / "_C_cuda.abi3.so").write_bytes(b"not a library")
    found, problem = _core._find(package)
    assert found.name == "compiled"
    assert re.search(r"for CUDA it in .* does not match the checksum", found.reason)
    assert problem.startswith("for CUDA ")
    assert problem.endswith("so only the CPU uses it")
    (package / "_C.abi3.so").unlink()  # the one for CUDA alone has no schemas
    assert "cache" in _core._find(package)[0].reason


@needs_compiler
@pytest.mark.parametrize("version", [_core.CORE_VERSION - 1, "?"])
def test_a_cuda_library_of_other_schemas_is_not_loaded(package, version):
    stale = compiled_beside(package, version).rename(package / "_C_cuda.abi3.so")
    compiled_beside(package)
    found, problem = _core._find(package)
    assert found.name == "compiled"
    assert problem == f"for CUDA in {stale} is version {version}, not {_core.CORE_VERSION}, so only the CPU uses it"


@needs_compiler
def test_both_libraries_are_the_backend_for_both_devices(package):
    shutil.copy(compiled_beside(package), package / "_C_cuda.abi3.so")
    variants.write_checksums(package)
    found, problem = _core._find(package)
    assert (found.name, problem) == ("compiled+cuda", "")


# ---------------------------------------------------------------- CUDA


@pytest.mark.parametrize(
    ("answer", "capabilities"),
    [
        ("echo 9.0; echo 8.0; echo 9.0", ("80", "90")),
        ("echo 7.5; echo 12.0; echo 8.9", ("89", "120")),  # no kernels for the first
        ("echo 7.0", None),
        ("exit 9", None),
        ("echo", None),
        ("echo '[N/A]'", None),
        ("printf '\\377'", None),
    ],
)
def test_the_gpus_of_this_machine_decide_what_cuda_is_compiled_for(tmp_path, monkeypatch, answer, capabilities):
    script(tmp_path / "nvcc", "")
    script(tmp_path / "nvidia-smi", answer)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    expected = capabilities and _build.Cuda(str(tmp_path / "nvcc"), capabilities)
    assert _build._cuda() == expected


@pytest.fixture
def gpu(package, tmp_path, monkeypatch) -> Path:
    """A source for CUDA, and a GPU and an nvcc as far as the build can tell; the path is that of nvcc."""
    (package.parent / "csrc" / "kernels.cu").write_text(f'const char marker[] = "{MARKER}";\n')
    monkeypatch.setattr(_core, "_this_torch", lambda: replace(THIS_TORCH, cuda=True))
    monkeypatch.setattr(_build, "_cuda", lambda: _build.Cuda(str(tmp_path / "nvcc"), ("90",)))
    script(tmp_path / "nvcc", NVCC)
    return tmp_path / "nvcc"


# Stands in for nvcc: notes and drops its own flags, and compiles the file as C++.
NVCC = """for a; do
  case $a in
    -gencode*) echo "$a" >> "$0.flags";;
    -Xcompiler=*|-ltorch_cuda) ;;
    *.cu) set -- "$@" -x c++ "$a";;
    *) set -- "$@" "$a";;
  esac
  shift
done
exec c++ -fPIC "$@" """


@needs_compiler
def test_where_there_is_a_gpu_and_nvcc_a_library_for_cuda_is_compiled_too(package, gpu):
    found, problem = _core._find(package)
    assert (found.name, problem) == ("compiled+cuda", "")
    assert gpu.with_name("nvcc.flags").read_text() == "-gencode=arch=compute_90,code=sm_90\n"
    gpu.unlink()
    assert _core._find(package) == (found, "")


@needs_compiler
def test_a_library_for_cuda_that_does_not_compile_is_told_and_leaves_the_cpu_s(package, gpu, tmp_path):
    script(gpu, "echo no device code; exit 1")
    found, problem = _core._find(package)
    (log,) = (tmp_path / "cache").glob("*.failed-*")
    assert "no device code" in log.read_text()
    assert found == _core.Backend(
        "compiled", f"the compiled core is {cached(tmp_path)}; for CUDA it did not compile ({log} says why)."
    )
    assert problem == f"for CUDA did not compile ({log} says why), so only the CPU uses it"
    assert re.match(r"for CUDA could not be compiled a while ago \(.*remove it to try again\)", _core._find(package)[1])
    log.unlink()
    script(gpu, NVCC)
    assert _core._find(package)[0].name == "compiled+cuda"


@needs_compiler
def test_a_library_for_cuda_that_the_clock_cut_off_is_tried_again(package, gpu, monkeypatch):
    (library,), *_ = _build.obtain(package.parent / "csrc", replace(THIS_TORCH, cuda=False))
    script(gpu, "sleep 60")
    monkeypatch.setattr(_build, "PATIENCE", 0)
    with monkeypatch.context() as hurry:
        hurry.setattr(_build, "SECONDS", 0.5)
        found, problem = _core._find(package)
    assert (found.name, str(library) in found.reason) == ("compiled", True)
    assert problem == "for CUDA did not compile within 0.5 s, so only the CPU uses it"
    script(gpu, NVCC)
    assert _core._find(package)[0].name == "compiled+cuda"


@needs_compiler
def test_libraries_from_pip_without_one_for_cuda_are_told_of_where_one_could_be_built(package, gpu, monkeypatch):
    library = compiled_beside(package)
    found, problem = _core._find(package)
    assert found.name == "compiled"
    assert found.reason.startswith(f"the compiled core is {library}; for CUDA it is not built (`pip install")
    assert re.fullmatch(r"for CUDA is not built \(.*\), so only the CPU uses it", problem)
    monkeypatch.setattr(_build, "_cuda", lambda: None)
    assert _core._find(package)[1] == ""


@pytest.mark.skipif(not _core.load(), reason="there is no compiled core")
@pytest.mark.parametrize(("capability", "served"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_gpus_that_the_kernels_were_not_written_for_get_the_twins(monkeypatch, capability, served):
    monkeypatch.setattr(_core, "backend", lambda: _core.Backend("compiled+cuda", ""))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    tensor = SimpleNamespace(is_cpu=False, is_cuda=True, dtype=torch.float32, device=torch.device("cuda", 0))
    _core._runs_kernels.cache_clear()
    try:
        assert _core.active(tensor) is served
    finally:
        _core._runs_kernels.cache_clear()


# ---------------------------------------------------------------- the same core built in other ways


@pytest.mark.parametrize("library", ["_C.so", "_C.abi3.so"])
def test_the_tests_of_a_variant_run_with_its_library_or_not_at_all(tmp_path, monkeypatch, library):
    """Stand-ins for the package and its tests: the first tells its library, unless it is switched off."""
    (tmp_path / "ddlnl").mkdir()
    (tmp_path / "ddlnl" / "__init__.py").touch()
    reason = f"'off' if 'DDLNL_EXTENSION' in os.environ else {str(tmp_path / 'ddlnl' / library)!r}"
    (tmp_path / "ddlnl" / "ops.py").write_text(
        f"import os, types\n\ndef backend():\n    return types.SimpleNamespace(reason={reason})\n"
    )
    (tmp_path / "test_probe.py").write_text(
        "from ddlnl import ops\n\ndef test_it():\n    assert ops.backend().reason != 'off'\n"
    )
    monkeypatch.setenv("DDLNL_EXTENSION", "off")
    if library == "_C.so":
        ended = variants.run_tests(tmp_path, [str(tmp_path / "test_probe.py")])
        assert ended.returncode == 0, ended.stdout
    else:
        with pytest.raises(subprocess.CalledProcessError):
            variants.run_tests(tmp_path, [str(tmp_path / "test_probe.py")])


# ---------------------------------------------------------------- what a program sees


def test_an_unusable_core_gives_one_warning_however_often_it_is_asked_for(package, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(_core, "__file__", str(package / "_core.py"))
    _core.backend.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"^The compiled core is not built and .*PyTorch twins") as caught:
            assert [_core.load(), _core.load(), _core.active(torch.ones(1))] == [False] * 3
        assert len(caught) == 1
        assert str(ops.backend()).startswith("reference: The compiled core is not built and there is no C++ compiler")
    finally:
        _core.backend.cache_clear()
        monkeypatch.undo()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _core.backend()


def test_the_extension_switch_is_silent_when_off_and_refuses_other_words(monkeypatch):
    monkeypatch.setenv("DDLNL_EXTENSION", "off")
    assert str(_core.backend.__wrapped__()) == "reference: DDLNL_EXTENSION is 'off'."
    monkeypatch.setenv("DDLNL_EXTENSION", "no")
    with pytest.raises(InputError, match=r"DDLNL_EXTENSION is 'no'; it can be 'on' .* or 'off'"):
        _core.backend.__wrapped__()


@pytest.mark.skipif(not _core.load(), reason="there is no compiled core")
def test_the_kernels_serve_floating_tensors_of_their_devices_and_no_others():
    assert torch.ops.ddlnl.core_version() == _core.CORE_VERSION
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert _core.active(torch.ones(1, dtype=dtype)) is True
        assert _core.active(torch.ones(1, dtype=dtype, device="meta")) is False
    for dtype in (torch.float16, torch.int64, torch.complex64):
        assert _core.active(torch.ones(1, dtype=dtype)) is False
    if torch.cuda.is_available():
        assert _core.active(torch.ones(1, device="cuda")) is (ops.backend().name == "compiled+cuda")


@needs_compiler
def test_a_checkout_without_libraries_runs_compiled_kernels_from_the_first_import(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "_C*", "SHA256SUMS", "*.cu")
    for name in ("ddlnl", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    flags = tmp_path / "csrc" / "flags.json"
    flags.write_text(flags.read_text().replace("-O3", "-O0"))  # compiles faster
    code = (
        "import warnings; warnings.filterwarnings('error', 'The compiled core');"
        "import torch; from ddlnl import ops; print(ops.backend());"
        "print(torch.ops.ddlnl.trajectory_distance_sums(*(torch.full((3,), x) for x in (2.0, 1.0, 3.0))).tolist())"
    )
    left_out = ("DDLNL_EXTENSION", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"DDLNL_BUILD_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    backend, sums = done.stdout.splitlines()
    assert backend == f"compiled: the compiled core is {cached(tmp_path)}, without CUDA kernels."
    assert sums == "[3.0, 12.0]"
