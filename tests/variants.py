"""The compiled core built in other ways, and what the tests of the operators make of it. Not collected by pytest.

    python tests/variants.py sanitize   # address and undefined-behaviour sanitizers over those, wrong and hostile calls
    python tests/variants.py mutants    # 23 planted errors, each of which those tests must find

Each variant is a copy of the package in a temporary folder, with its own library compiled from csrc/ for the CPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parent.parent
COMPILER = os.environ.get("CXX", "c++")
FAMILIES = ("augment", "block", "distances", "smooth")
TESTS = {family: f"test_ops_{family}.py" for family in FAMILIES}
CALLS = ("test_ops_bad_input.py", "faults/test_hostile_calls.py")  # of any operator, wrong and hostile ones
SANITIZE = [
    "-O1",
    "-g",
    "-DDDLNL_ONE_PATH",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
]

# File, what stands there, what stands there instead: signs, indices, borders, forgotten terms.
MUTANTS = [
    ("block_planes.h", "squares / A(n) + eps", "squares / A(n) - eps"),
    ("block_planes.h", "product += d * xh;", "product -= d * xh;"),
    ("block_planes.h", "top[width - 1] = bottom[width - 1] = 0", "top[width - 1] = bottom[width - 1] = 1"),
    ("block_planes.h", "(has_dw ? dscale * xh : A(0)) + dshift", "(has_dw ? dscale * xh : A(0)) - dshift"),
    ("block_cpu.cpp", "shares[image * block.channels + c]", "shares[group * block.channels + c]"),
    ("block_cpu.cpp", "sums[kAx][at] += sums[kEd][at]", "sums[kAx][at] -= sums[kEd][at]"),
    ("block_last.h", "(block.width + 1) * block.channels);", "block.width * block.channels);"),
    ("block_last.h", "last_row ? 0 : 2 * block.pooled_width()", "2 * block.pooled_width()"),
    ("block.h", "- 2 * r * s * q1 + q2", "- 2 * r * s * q1 - q2"),
    ("block.h", "image / (images / groups)", "image % groups"),
    ("augment_cpu.cpp", "(1 - contrast) * mean", "contrast * mean"),
    ("augment_cpu.cpp", "line % call.height + row_shift", "line % call.height - row_shift"),
    ("augment_cpu.cpp", "from[call.width - 1 - j]", "from[j]"),
    ("augment_cpu.cpp", "weights[3][j] * at[stride + 1]", "weights[3][j] * at[stride]"),
    ("augment_cpu.cpp", "at[1] += scratch.weights[1][j]", "at[1] += scratch.weights[0][j]"),
    ("augment_cpu.cpp", "call.stages - 1 - s : s", "s : s"),
    ("augment.h", "box = (side + 1) / 2", "box = side / 2"),
    ("smooth_cpu.cpp", "p * r + 1.0f / 24", "p * r + 1.0f / 25"),
    ("smooth_cpu.cpp", "negative ? e : one", "negative ? one : e"),
    ("smooth_cpu.cpp", "std::fill_n(to, x.numel(), A(0))", "std::fill_n(to, x.numel(), A(1))"),
    ("distances_cpu.cpp", "a = A(from[i]) - goal", "a = A(from[i]) + goal"),
    ("distances_cpu.cpp", "std::max(count[k], A(1)), width", "A(size.rows), width"),
    ("distances_cpu.cpp", "count[label[row]], size.columns", "A(1), size.columns"),
]


def build(folder: Path, flags: list[str], edit: tuple[str, str, str] | None = None) -> None:
    """A copy of the package in `folder`, with a library compiled with `flags` after `edit` (file, old, new)."""
    shutil.copytree(ROOT / "ddlnl", folder / "ddlnl", ignore=shutil.ignore_patterns("_C*", "SHA256SUMS", "__pycache__"))
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    if edit:
        source = folder / "csrc" / edit[0]
        text = source.read_text()
        if edit[1] not in text:
            sys.exit(f"{edit[0]} no longer has {edit[1]!r}; bring the list of mutants up to date.")
        source.write_text(text.replace(edit[1], edit[2], 1))
    usual = [flag for flag in json.loads((ROOT / "csrc" / "flags.json").read_text())["cpu"] if flag != "-O3"]
    libraries = Path(torch.__file__).parent / "lib"
    compiler = [COMPILER, *usual, *flags, "-fPIC", *(f"-I{path}" for path in include_paths("cpu"))]

    def compiled(source: Path) -> str:
        subprocess.run([*compiler, "-c", str(source), "-o", f"{source}.o"], check=True)
        return f"{source}.o"

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, sorted((folder / "csrc").glob("*.cpp"))))
    link = ["-shared", *objects, "-o", str(folder / "ddlnl" / "_C.so"), f"-L{libraries}"]
    subprocess.run([*compiler, *link, "-lc10", "-ltorch", "-ltorch_cpu"], check=True)
    write_checksums(folder / "ddlnl")


def write_checksums(folder: Path) -> None:
    """Of the libraries in `folder`, as a build leaves them."""
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in folder.glob("_C*.so")]
    (folder / "SHA256SUMS").write_text("".join(lines))


def run_tests(folder: Path, files: list[str], **environment: str) -> subprocess.CompletedProcess:
    """The tests of the operators with the library in `folder`, and no other; they stop at the first failure."""
    settings = {name: value for name, value in os.environ.items() if name != "DDLNL_EXTENSION"} | environment
    library = str(folder.resolve() / "ddlnl" / "_C.so")  # without it the tests would pass on other kernels, or on none
    check = f"from ddlnl import ops; assert {library!r} in ops.backend().reason, ops.backend()"
    subprocess.run([sys.executable, "-c", check], env=settings, cwd=folder, check=True)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    paths = [str(ROOT / "tests" / file) for file in files]
    return subprocess.run([*command, *paths], env=settings, cwd=folder, capture_output=True, text=True)


def _path_of(library: str) -> str:
    command = [COMPILER, f"-print-file-name={library}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def sanitize() -> int:
    """Build with the sanitizers and run every test of the operators; the exit status is that of the tests."""
    # Python is not linked with either: the sanitizer has to come first, and finds `throw` in the C++ library.
    libraries = [_path_of("libasan.so"), _path_of("libstdc++.so")]
    if not all(map(os.path.isabs, libraries)):
        print(f"Skipped: {COMPILER} has no AddressSanitizer.")
        return 0
    with tempfile.TemporaryDirectory() as name:
        build(Path(name), SANITIZE)
        # Python itself never frees everything, so leaks are not looked for; pytest would swallow what is written.
        # A wrong call may ask for more memory than there is, and has to get an exception.
        options = f"detect_leaks=0:print_stacktrace=1:log_path={name}/report"
        options += ":allocator_may_return_null=1:max_allocation_size_mb=3072"
        environment = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": options, "UBSAN_OPTIONS": options}
        ended = run_tests(Path(name), [*TESTS.values(), *CALLS], **environment)
        reports = [line for report in Path(name).glob("report*") for line in report.read_text().splitlines(True)]
    refused = "AddressSanitizer failed to allocate"  # what hostile calls ask for
    print(ended.stdout[-3000:], ended.stderr[-3000:], *(line for line in reports if refused not in line), sep="")
    return ended.returncode


def mutants() -> int:
    """Plant one error at a time; returns how many the tests did not find."""
    missed = 0
    for file, old, new in MUTANTS:
        with tempfile.TemporaryDirectory() as name:
            build(Path(name), ["-O1", "-DDDLNL_ONE_PATH"], (file, old, new))
            family = file.split(".")[0].split("_")[0]
            found = run_tests(Path(name), [TESTS[family]]).returncode == 1
        missed += not found
        print("found " if found else "MISSED", f"{file}: {old!r} -> {new!r}", flush=True)
    print(f"{len(MUTANTS) - missed} of {len(MUTANTS)} planted errors were found.")
    return missed


if __name__ == "__main__":
    if sys.argv[1:] not in (["sanitize"], ["mutants"]):
        sys.exit(__doc__)
    sys.exit(min({"sanitize": sanitize, "mutants": mutants}[sys.argv[1]](), 1))
