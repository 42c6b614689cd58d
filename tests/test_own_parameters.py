"""The notebook on a reader's own images refuses bad parameters before any work, in one sentence."""

from __future__ import annotations

import pytest
from image_sets import refusal

from ddlnl import __main__, own_parameters
from ddlnl.denoised import Report


def test_parameters_that_are_not_given_have_the_values_of_the_notebook():
    given = own_parameters.check({"ipc": 4, "check": own_parameters.check})
    assert (given.data, given.noise, given.ipc, given.out_dir) == (None, None, 4, "denoised")


def test_bad_parameters_are_refused():
    assert "Did you mean 'method'" in refusal(own_parameters.check, {"methods": "dance"})
    assert "'ipc' is '4', and it must be a whole number" in refusal(own_parameters.check, {"ipc": "4"})
    assert "'seed' is True, and it must be a whole number" in refusal(own_parameters.check, {"seed": True})
    assert "'data' is 3, and it must be text" in refusal(own_parameters.check, {"data": 3})
    assert "'data_dir' is False, and it must be text" in refusal(own_parameters.check, {"data_dir": False})
    assert "'compare' is 1, and it must be true or false" in refusal(own_parameters.check, {"compare": 1})
    assert "'full' is unknown" in refusal(own_parameters.check, {"method": "full"})
    assert "'tiny' is unknown" in refusal(own_parameters.check, {"profile": "tiny"})
    assert "'symetric:0.3' is unknown" in refusal(own_parameters.check, {"noise": "symetric:0.3"})


def test_the_command_denoises_writes_and_sums_up(monkeypatch, tmp_path, capsys):
    asked = {}

    class Found(Report):
        def __init__(self):
            pass

        def save(self, folder):
            return [tmp_path / folder]

        def summary(self):
            return ["7 labels are suspected."]

    def denoise(data, **options):
        asked.update(options, data=data)
        return Found()

    monkeypatch.setattr(__main__, "denoise", denoise)
    __main__.main(["denoise", "pets", "out", "--ipc", "6", "--seed", "3", "--data-dir", "archives"])
    assert (asked["data"], asked["data_dir"]) == ("pets", "archives")
    assert (asked["ipc"], asked["seed"], asked["method"], asked["profile"]) == (6, 3, "dance", "demo")
    assert capsys.readouterr().out == f"7 labels are suspected.\nWrote {tmp_path / 'out'}.\n"


def test_the_command_says_in_one_sentence_what_it_cannot_use(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        __main__.main(["denoise", str(tmp_path / "absent"), str(tmp_path / "out")])
    assert end.value.code == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
