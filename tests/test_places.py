"""What names a file or a folder is expanded, or refused in one sentence, wherever it comes from."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from ddlnl import _build, archives, datasets, own_images, store
from ddlnl.errors import InputError
from ddlnl.places import path_of


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("", "must be a path"),
        ("  ", "must be a path"),
        (None, "must be a path"),
        (b"folder", "must be a path"),
        ("x" * 5000, "File name too long"),
        ("a\0b", "null"),
        ("~nobody-of-this-name/x", "home directory"),
    ],
)
def test_what_cannot_be_a_path_is_refused_in_one_short_sentence(place, reason):
    with pytest.raises(InputError, match=reason) as refusal:
        path_of(place, "folder store_dir")
    assert str(refusal.value).startswith("The folder store_dir ")
    assert len(str(refusal.value)) < 200


def test_what_is_missing_is_a_path_all_the_same(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "absent", tmp_path / "file" / "below", tmp_path):
        assert path_of(str(place), "dataset") == path_of(place, "dataset") == place


@pytest.mark.parametrize(
    ("name", "found"), [("DDLNL_STORE", store.default_directory), ("DDLNL_DATA", lambda: archives.folders()[0])]
)
def test_a_folder_in_the_environment_begins_at_home_where_it_says_so(name, found, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, "~/results")
    assert found() == tmp_path / "results"


@pytest.fixture
def homeless(monkeypatch):
    """A user whom neither the environment nor the system gives a home, as in some containers."""

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "DDLNL_STORE", "DDLNL_DATA", "DDLNL_BUILD_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_a_user_without_a_home_is_told_which_folder_to_name(homeless, tmp_path):
    with pytest.raises(InputError, match="no home folder for results; name a folder as store_dir"):
        store.Store()
    with pytest.raises(InputError, match="no home folder for archives; name a folder as data_dir"):
        archives.folders()
    assert store.Store(tmp_path).root == tmp_path
    assert archives.folders(tmp_path) == [tmp_path]


def test_a_user_without_a_home_goes_on_without_a_core_of_its_own(homeless, tmp_path):
    torch = _build.Torch("2.12.1", tmp_path, cuda=False)
    with pytest.raises(_build.Unbuilt, match="has no folder, which DDLNL_BUILD_DIR could name"):
        _build.obtain(Path(__file__).parents[1] / "csrc", torch)
    assert "~" not in os.listdir()


@pytest.mark.parametrize("call", [datasets.load, own_images.load])
@pytest.mark.parametrize("name", ["~nobody-of-that-name/own.npz", "x" * 5000 + ".npz"])
def test_what_reads_or_writes_at_an_impossible_place_says_so(call, name):
    with pytest.raises(InputError, match="cannot be a path"):
        call(name)
