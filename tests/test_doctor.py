"""`python -m ddlnl doctor` names every problem with what to do, and changes nothing."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch
from image_sets import arrays, save
from test_study import archive_path as archive_path

from ddlnl import datasets, doctor, files
from ddlnl import store as store_module
from ddlnl.__main__ import main
from ddlnl.store import FORMAT, Store, write_tensors


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "store")
    for key in ("one", "two"):
        store.save_record("cell", key, {"method": "dance"})
        write_tensors(store.artefact_path(key), {"images": torch.ones(3)}, {})
    write_tensors(store.root / "artefacts" / "experts" / "snapshot.safetensors", {"p": torch.ones(3)}, {})
    return store


def problems(store: Store, data_dir: Path | None = None) -> list[doctor.Finding]:
    return [finding for finding in doctor.examine(data_dir, store.root) if finding.advice]


def test_a_whole_installation_has_no_problem(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DDLNL_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DDLNL_EXTENSION", "off")  # a machine without a compiler, or with a GPU without kernels for it
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    main(["doctor", "--store-dir", str(store.root)])
    told = capsys.readouterr().out
    assert f"{store.root}: 2 records, 3 artefacts" in told
    assert f"torch: {metadata.version('torch')}\n" in told
    digits = datasets.load("digits")
    sizes = f"{len(digits.train)} training and {len(digits.test)} test images"
    assert f"data digits: {sizes} (installed with scikit-learn)" in told
    assert "data cifar10: no archive in" in told
    assert told.endswith("Nothing is wrong.\n")


@pytest.mark.parametrize("place", ["records/cell/one.json", "artefacts/two.safetensors", "artefacts/experts/snapshot"])
def test_a_damaged_file_is_named_and_left_where_it_is(store, place, capsys):
    path = store.root / (place if "." in place else f"{place}.safetensors")
    whole = bytearray(path.read_bytes())
    whole[-9] ^= 1
    path.write_bytes(whole)
    (problem,) = problems(store)
    assert str(path) in problem.found
    assert "computes it again" in problem.advice
    assert path.read_bytes() == whole
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--store-dir", str(store.root)])
    assert stop.value.code == 2
    assert "1 of these are problems" in capsys.readouterr().err


def test_a_damaged_library_of_the_core_is_named(store, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.ddlnl, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "_C.abi3.so").write_bytes(b"torn")
    (problem,) = problems(store)
    assert f"{tmp_path / '_C.abi3.so'} does not match the checksum beside it" in problem.found


def test_a_record_of_another_format_is_named(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "FORMAT", FORMAT + 1)
        store.save_record("cell", "one", {"method": "dance"})
    (problem,) = problems(store)
    assert f"has format {FORMAT + 1}" in problem.found


def test_files_that_were_set_aside_are_named(store):
    store.artefact_path("one").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="not a readable safetensors file"):
        assert store.tensors("one") is None
    (problem,) = problems(store)
    assert problem.what == "set aside as damaged"
    assert "one.safetensors" in problem.found


def test_halves_of_files_that_killed_saves_left_are_named(store):
    left = store.artefact_path("one").with_name(".one.safetensors.0123abcd.77.tmp")
    left.touch()
    with files.replacing(store.artefact_path("two")):
        (problem,) = problems(store)
    assert (problem.what, problem.found) == ("halves of files", str(left))


def test_a_missing_package_a_full_disk_and_a_damaged_archive_are_named(store, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(doctor, "ROOM", 2**60)
    save(tmp_path / "cifar10.npz", arrays())
    whole = (tmp_path / "cifar10.npz").read_bytes()
    (tmp_path / "cifar10.npz").write_bytes(whole[: len(whole) // 2])
    found = {problem.what: problem for problem in problems(store, tmp_path)}
    assert set(found) == {"no-such-package", "room for the store", "data cifar10"}
    assert "cut short" in found["data cifar10"].found


def test_the_command_line_computes_a_study_and_refuses_what_cannot_be(archive_path, tmp_path, capsys):
    words = ["study", "--dataset", archive_path, "--rates", "0", "0.5", "--ipcs", "2", "--seeds", "1"]
    words += ["--device", "cpu", "--store-dir", str(tmp_path / "store")]
    main([*words, "--methods", "random"])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["noise", "imbalance", "method", "ipc", "seed", "accuracy_last", "std_last", "seconds"]
    assert [row.split()[:5] for row in rows] == [
        [noise, "none", "random", "2", "0"] for noise in ("clean", "symmetric:0.5")
    ]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--methods", "rndom"])
    assert stop.value.code == 2
    assert "Did you mean 'random'" in capsys.readouterr().err
