"""Build the compiled core: csrc/ becomes one library for the CPU and, where nvcc and .cu files are there, one for CUDA.

Names, dependencies and versions are in pyproject.toml. The core is optional: a library that does not compile costs one
warning, and the package then runs its pure-PyTorch twins. Only LibTorch's stable ABI is used, so a source compiles in
seconds and one library serves every Python and every torch that the package allows.
"""

import hashlib
import json
import os
import shutil
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ModuleNotFoundError:
    sys.exit("ddlnl compiles against torch, which this Python does not have: run `pip install torch ninja` first.")

# ddlnl/_build.py compiles with the same flags. `omp simd` lets the compiler vectorise the sums that are marked with it,
# without the rest of OpenMP or of fast-math; the target is torch 2.11, the oldest that pyproject.toml allows.
FLAGS = json.loads(Path("csrc/flags.json").read_text())
HEADERS = sorted([*glob("csrc/*.h"), "csrc/flags.json"])
OPTIONS = {"py_limited_api": True, "depends": HEADERS}


class WithSources(build_py):
    """A wheel carries csrc/ too, for the machine where its libraries do not load."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("csrc", Path(self.build_lib, "ddlnl", "csrc"), dirs_exist_ok=True)


class OptionalBuild(BuildExtension):
    """Compile each library by itself; where one fails, warn and leave it out."""

    def run(self) -> None:
        """Begin without the libraries of earlier builds: one that is not made again would be loaded beside new ones.

        Beside those of this build go their checksums, without which `ddlnl/_core.py` loads none.
        """
        folders = [Path(self.build_lib, "ddlnl"), *([Path("ddlnl")] if self.inplace else [])]
        for old in (file for folder in folders for name in ("_C*.so", "SHA256SUMS") for file in folder.glob(name)):
            old.unlink()
        super().run()
        for folder in folders:
            lines = [
                f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in folder.glob("_C*.so")
            ]
            if lines:
                Path(folder, "SHA256SUMS").write_text("".join(lines))

    def build_extensions(self) -> None:
        wanted = self.extensions
        for extension in wanted:
            self.extensions = [extension]
            try:
                super().build_extensions()
            except Exception as error:  # the compiler, ninja, nvcc and torch's own checks each raise something else
                extension.optional = True  # setuptools then does not look for the library
                self.warn(f"{extension.name} was not compiled, its PyTorch twins take its place: {error}")
        self.extensions = wanted


def libraries() -> list[Extension]:
    """One extension per device; the CUDA one needs nvcc and a CUDA build of torch, not a GPU."""
    found = [CppExtension("ddlnl._C", sorted(glob("csrc/*.cpp")), extra_compile_args=FLAGS["cpu"], **OPTIONS)]
    kernels = sorted(glob("csrc/*.cu"))
    nvcc = CUDA_HOME and shutil.which("nvcc", path=os.path.join(CUDA_HOME, "bin"))
    if kernels and nvcc and torch.version.cuda:
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;8.6;9.0+PTX")
        flags = {"nvcc": FLAGS["cuda"]}
        found.append(CUDAExtension("ddlnl._C_cuda", kernels, extra_compile_args=flags, **OPTIONS))
    return found


setup(
    ext_modules=libraries(),
    cmdclass={"build_ext": OptionalBuild, "build_py": WithSources},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
