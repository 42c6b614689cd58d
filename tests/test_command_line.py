"""Whatever ends a command that is not a mistake in the code is said in one sentence, and the exit code is 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import small
import torch
from test_study import archive_path as archive_path

from ddlnl import __main__, engines
from ddlnl.errors import DamagedError
from ddlnl.profiles import PROFILES
from ddlnl.training import NoProgress, NotFinite, Recipe


def fails_with(error: Exception) -> Callable:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def told(words: list[str], capsys) -> str:
    """The last line on standard error of a command that cannot end; progress bars come before it."""
    with pytest.raises(SystemExit) as stop:
        __main__.main(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.replace("\r", "\n").strip().splitlines()[-1]


@pytest.fixture
def words(archive_path: str, tmp_path: Path) -> list[str]:
    given = ["--dataset", archive_path, "--methods", "random", "--rates", "0", "--ipcs", "2", "--seeds", "1"]
    return ["study", *given, "--device", "cpu", "--store-dir", str(tmp_path / "store")]


@pytest.mark.parametrize(
    "error",
    [
        NotFinite("DANCE: images is not finite in iteration 3 of 4."),
        NoProgress("DATM: nothing was matched in the first 10 iterations."),
        DamagedError("one.safetensors does not match its checksum."),
        FileNotFoundError(2, "No such file or directory", "absent"),
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_study_whose_cell_cannot_be_computed_ends_with_its_sentence(words, monkeypatch, capsys, error):
    monkeypatch.setattr(engines, "run_cell", fails_with(error))
    reason = str(error) or "there is not enough memory."
    assert told(words, capsys).endswith(f"clean, random, IPC 2, seed 0) failed: {reason}")


def test_a_study_that_diverges_ends_with_a_sentence(words, monkeypatch, capsys):
    recipe = Recipe(epochs=1, batch_size=64, lr=1e20)
    diverging = replace(small.profile().student, recipe=recipe)
    monkeypatch.setitem(PROFILES, "demo", small.profile(student=diverging))
    assert "failed: The logits of network 1, 2 of 2 are not finite." in told(words, capsys)


def test_a_study_whose_workers_die_again_and_again_ends_with_a_sentence(words, monkeypatch, capsys):
    monkeypatch.setattr(engines, "_pool", lambda cells, compute, workers: iter(()))
    with pytest.warns(UserWarning, match="A process died that computed a cell"):
        assert "3 times in a row processes died" in told([*words, "--workers", "2"], capsys)


@pytest.mark.parametrize("error", [NotFinite("The loss is not finite."), DamagedError("a.safetensors is damaged.")])
def test_denoising_that_cannot_end_says_so_in_a_sentence(monkeypatch, tmp_path, capsys, error):
    monkeypatch.setattr(__main__, "denoise", fails_with(error))
    assert told(["denoise", "digits", str(tmp_path / "out")], capsys) == str(error)


def test_a_mistake_in_the_code_keeps_its_traceback(words, monkeypatch):
    monkeypatch.setattr(engines, "run_cell", fails_with(KeyError("x")))
    with pytest.raises(RuntimeError, match=r"seed 0\) failed: 'x'") as failure:
        __main__.main(words)
    assert isinstance(failure.value.__cause__, KeyError)
