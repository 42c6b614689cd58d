"""The sources for CUDA compile, also where there is no GPU to run them on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ddlnl import _core

SOURCES = Path(__file__).parents[1] / "csrc"


def find_nvcc() -> str | None:
    """The first nvcc that answers: one on the PATH may only stand in for a toolkit that is not installed."""
    folders = [os.path.join(os.environ.get("CUDA_HOME", ""), "bin"), "/usr/local/cuda/bin"]
    for nvcc in (*(shutil.which("nvcc", path=folder) for folder in folders), shutil.which("nvcc")):
        if nvcc and subprocess.run([nvcc, "--version"], capture_output=True, check=False).returncode == 0:
            return nvcc
    return None


NVCC = find_nvcc()


@pytest.mark.skipif(not NVCC, reason="there is no nvcc that works in $CUDA_HOME, /usr/local/cuda or the PATH")
@pytest.mark.parametrize("source", sorted(SOURCES.glob("*.cu")), ids=lambda source: source.name)
def test_kernels_for_cuda_compile_and_carry_the_version_of_the_core(source, tmp_path):
    root, made = Path(torch.__file__).parent, tmp_path / "kernels.o"
    flags = json.loads((SOURCES / "flags.json").read_text())["cuda"]
    include = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    targets = [f"-gencode=arch=compute_{capability},code=sm_{capability}" for capability in (80, 90)]
    command = [NVCC, "-c", *targets, *flags, "-Xcompiler=-fPIC", *include, str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"ddlnl-core-version:{_core.CORE_VERSION}\0".encode() in made.read_bytes()
