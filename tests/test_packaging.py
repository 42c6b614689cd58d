"""What can be installed, from which versions, and what happens where the compiled core cannot be built."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ddlnl import _build, _core

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LEFTOVERS = shutil.ignore_patterns("__pycache__", "_C*", "SHA256SUMS")


def pinned_lines() -> list[str]:
    return yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]


def pins(python: str | None = None) -> dict[str, Requirement]:
    """The pins that hold on one Python, by canonical name; a name pinned twice there is an error."""
    environment = {"python_version": python} if python else {}
    found = [r for r in map(Requirement, pinned_lines()) if r.marker is None or r.marker.evaluate(environment)]
    by_name = {canonicalize_name(r.name): r for r in found}
    assert len(by_name) == len(found)
    return by_name


def declared() -> list[Requirement]:
    project = PYPROJECT["project"]
    lines = [*PYPROJECT["build-system"]["requires"], *project["dependencies"]]
    lines += [line for extra in project["optional-dependencies"].values() for line in extra]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_every_dependency_has_one_exact_version_inside_its_range(python):
    exact = pins(python)
    assert set(exact) == {canonicalize_name(r.name) for r in declared()}
    for requirement in declared():
        (specifier,) = exact[canonicalize_name(requirement.name)].specifier
        assert specifier.operator == "=="
        assert requirement.specifier.contains(specifier.version), f"{requirement} leaves out {specifier}"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not know which package every module is from")
def test_every_library_that_the_package_imports_is_declared():
    nodes = [n for file in (ROOT / "ddlnl").rglob("*.py") for n in ast.walk(ast.parse(file.read_text()))]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    modules = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - {"ddlnl"}
    names = {canonicalize_name(r.name) for r in declared()}
    providers = metadata.packages_distributions()
    assert not {m for m in modules if not names & set(map(canonicalize_name, providers.get(m, [m])))}


def test_setup_py_leaves_names_and_versions_to_pyproject():
    calls = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.Call)]
    (setup,) = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "setup"]
    assert {keyword.arg for keyword in setup.keywords} == {"ext_modules", "cmdclass", "options"}


def test_the_environment_that_make_builds_has_the_pinned_versions():
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("these tests do not run in the environment that make builds")
    assert (ROOT / ".venv" / "pins.txt").read_text().splitlines() == pinned_lines()
    for name, pin in pins().items():
        assert pin.specifier.contains(metadata.version(name)), f"{name} {metadata.version(name)} is not {pin}"


def build_wheel(folder: Path, **environment: str) -> tuple[Path, str]:
    """Build a copy of the package with the hook that pip calls; return the unpacked wheel and all that was printed.

    Without CUDA and without optimisation, which would take minutes.
    """
    source, site = folder / "source", folder / "site"
    for name in ("ddlnl", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=LEFTOVERS)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    flags = json.loads((ROOT / "csrc" / "flags.json").read_text())
    (source / "csrc" / "flags.json").write_text(json.dumps(flags | {"cpu": [*flags["cpu"], "-O0"]}))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where ninja is
    done = subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('..')"],
        cwd=source,
        env={**os.environ, "PATH": path, "CUDA_HOME": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site, done.stdout


def test_a_build_leaves_no_library_of_an_earlier_one(tmp_path):
    """One for CUDA that is no longer made, or no longer compiles, would be loaded beside a new one for the CPU."""
    (tmp_path / "csrc").mkdir()
    shutil.copy(ROOT / "csrc" / "flags.json", tmp_path / "csrc")
    (tmp_path / "csrc" / "ops.cpp").touch()
    project = "[project]\nname = 'ddlnl'\nversion = '0'\n[tool.setuptools]\npackages = ['ddlnl']\n"
    (tmp_path / "pyproject.toml").write_text(project)
    (tmp_path / "setup.py").write_text((ROOT / "setup.py").read_text())
    kept = [tmp_path / "ddlnl" / name for name in ("__init__.py", "_core.py")]
    left = ("_C.abi3.so", "_C_cuda.abi3.so", "SHA256SUMS")
    stale = [tmp_path / folder / name for folder in ("ddlnl", "lib/ddlnl") for name in left]
    for file in [*kept, *stale]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--build-lib", "lib"],
        cwd=tmp_path,
        env={**os.environ, "CUDA_HOME": str(tmp_path), "CXX": "false", "CC": "false"},
        capture_output=True,
        check=True,
    )
    assert not [file for file in stale if file.exists()]
    assert all(file.exists() for file in kept)


def python(site: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that imports ddlnl from `site`, its working folder, and has no core elsewhere."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("DDLNL_EXTENSION", "PYTHONPATH")}
    environment = {**inherited, "DDLNL_BUILD_DIR": str(site.parent / "cache"), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=site, env=environment, capture_output=True, text=True, check=True
    )


def test_a_wheel_holds_every_file_of_the_package_and_the_compiled_core(tmp_path):
    if not shutil.which(os.environ.get("CXX", "c++")):
        pytest.skip("there is no C++ compiler")
    site, output = build_wheel(tmp_path)
    package = tmp_path / "source" / "ddlnl"
    files = {f.relative_to(package) for f in package.rglob("*") if f.is_file()}
    assert not {f for f in files if not (site / "ddlnl" / f).exists()}
    assert not {f.name for f in (ROOT / "csrc").iterdir() if not (site / "ddlnl" / "csrc" / f.name).exists()}
    assert "was not compiled" not in output
    found = python(site, "from ddlnl import _core; print(_core._libraries(_core.Path(_core.__file__).parent)[0])")
    library = Path(found.stdout.strip())
    assert library.parent == site / "ddlnl"
    assert f"ddlnl-core-version:{_core.CORE_VERSION}\0".encode() in library.read_bytes()
    assert _build.is_whole(library)
    assert f"the compiled core is {library}" in python(site, "from ddlnl import ops; print(ops.backend())").stdout


def test_without_a_compiler_the_package_installs_and_each_program_that_uses_it_warns_once(tmp_path):
    site, output = build_wheel(tmp_path, CXX="false", CC="false")
    assert output.count("was not compiled") == 1
    used = python(site, "from ddlnl import _core; print(_core.load(), _core.load())", CXX="false")
    assert used.stdout.split() == ["False", "False"]
    assert used.stderr.count("The compiled core did not compile") == 1
