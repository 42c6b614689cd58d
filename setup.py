"""Build the compiled core: csrc/ becomes one library for the CPU and, where nvcc and .cu files are there, one for CUDA.

Names, dependencies and versions are in pyproject.toml. The core is optional: a library that does not compile costs one
warning, and the package then runs its pure-PyTorch twins. Only LibTorch's stable ABI is used, so a source compiles in
seconds and one library serves every Python and every torch that the package allows.
"""

import os
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ModuleNotFoundError:
    sys.exit("ddlnl compiles against torch, which this Python does not have: run `pip install torch ninja` first.")

TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # 2.11, the oldest torch that pyproject.toml allows
OPTIONS = {"py_limited_api": True, "depends": sorted(glob("csrc/*.h"))}


class OptionalBuild(BuildExtension):
    """Compile each library by itself; where one fails, warn and leave it out."""

    def build_extensions(self) -> None:
        wanted = self.extensions
        for extension in wanted:
            self.extensions = [extension]
            try:
                super().build_extensions()
            except Exception as error:  # the compiler, ninja, nvcc and torch's own checks each raise something else
                extension.optional = True  # setuptools then does not look for the library
                Path(self.get_ext_filename(extension.name)).unlink(missing_ok=True)  # one left from older sources
                self.warn(f"{extension.name} was not compiled, its PyTorch twins take its place: {error}")
        self.extensions = wanted


def libraries() -> list[Extension]:
    """One extension per device; the CUDA one needs nvcc and a CUDA build of torch, not a GPU."""
    found = [CppExtension("ddlnl._C", sorted(glob("csrc/*.cpp")), extra_compile_args=["-O3", TARGET], **OPTIONS)]
    kernels = sorted(glob("csrc/*.cu"))
    if kernels and CUDA_HOME and torch.version.cuda:
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;8.6;9.0+PTX")
        flags = {"nvcc": ["-O3", "-DUSE_CUDA", TARGET]}
        found.append(CUDAExtension("ddlnl._C_cuda", kernels, extra_compile_args=flags, **OPTIONS))
    return found


setup(
    ext_modules=libraries(),
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
