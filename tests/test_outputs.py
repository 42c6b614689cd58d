"""A place that cannot be written is refused before the work whose results go there, and nothing stays of the try."""

from __future__ import annotations

import pytest
from image_sets import refusal

from ddlnl import __main__, outputs, own_parameters, rcig_curve


def test_folders_that_are_there_or_can_be_made_are_accepted_and_left_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "there", "there", "new/below", ".", "there/../other", "~"):
        outputs.require_folder(folder)
    for file in ("out.csv", tmp_path / "new" / "out.csv"):
        outputs.require_file(file)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


UNUSABLE = (
    "~nobody-of-that-name",
    "file",
    "file/below",
    "file/below/it",
    "a" * 300,
    "new/" + "a" * 300,
    "nul\0",
    "/proc/self/out",
    "loop/out",
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("folder", UNUSABLE)
def test_folders_that_cannot_be_written_are_refused_in_one_sentence(place, folder):
    assert "cannot be written" in refusal(outputs.require_folder, folder)
    assert "cannot be written" in refusal(outputs.require_file, f"{folder}/out.csv")
    assert sorted(path.name for path in place.iterdir()) == ["file", "loop"]


def test_a_folder_is_no_file_to_write(tmp_path):
    assert "is a folder" in refusal(outputs.require_file, tmp_path)


def no_work(*_, **__):
    raise AssertionError("work began")


def test_commands_and_notebook_refuse_such_a_place_before_any_work(place, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "denoise", no_work)
    monkeypatch.setattr(rcig_curve, "measure", no_work)
    calls = ((__main__.main, ["denoise", "digits", "file/out"]), (rcig_curve.main, ["file/curve.csv"]))
    for main, arguments in calls:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert "cannot be written" in error
        assert error.count("\n") == 1
    assert "cannot be written" in refusal(own_parameters.check, {"out_dir": "file/out"})
