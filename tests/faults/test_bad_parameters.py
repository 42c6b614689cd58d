"""Wrong parameters stop a run at once, in one sentence that names what is wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import fields

import pytest

import ddlnl
from ddlnl import __main__, cell_run, denoising, noise, own_parameters, parameters, study
from ddlnl.errors import InputError

PROMISE = "wrong parameters are refused in one sentence"
TEXTS = ["", " ", "../../etc/passwd", "/dev/null", "C:\\con", "a\nb", "x" * 5000, "\0", "💥", "None", "nan", "-1", "*"]
NUMBERS = [math.nan, math.inf, -math.inf, -1, -0.5, 1.0000001, 10**30, 1e308, 2.5]
PATHS = ["", " ", "\0", "x" * 5000, "~nobody-of-this-name/x"]
OBJECTS = [b"demo", {"a": 1}, {1, 2}, object(), [[1]], [None], (), [[]], 1j, True, "true", int]


def misspelt(name: str, draws: random.Random) -> str:
    """The name with one letter dropped, doubled, swapped or in the other case."""
    place = draws.randrange(len(name))
    forms = [
        name[:place] + name[place + 1 :],
        name[:place] + 2 * name[place] + name[place + 1 :],
        name[:place] + name[place].swapcase() + name[place + 1 :],
        name + draws.choice("s_1x"),
    ]
    return draws.choice([one for one in forms if one and one != name])


def refused(call: Callable, *arguments, **options) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    message = str(error.value)
    assert message.count("\n") == 0, message
    assert 20 < len(message) < 6000, message
    return message


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """Nothing may be computed."""
    for place, name in ((study.engines, "run_cell"), (denoising.methods, "final_set"), (cell_run._Run, "finish")):
        monkeypatch.setattr(place, name, lambda *_, **__: pytest.fail("work was started"))


def bad_values(name: str) -> list:
    """Values that are wrong for a parameter of a study's notebook."""
    counts = [*NUMBERS, 0, 10**9, *TEXTS, *OBJECTS]
    text = [*NUMBERS, *TEXTS, *OBJECTS]
    return {
        "profile": text,
        "dataset": [*text, *[f"{path}.npz" for path in PATHS]],
        "methods": [value for value in text if value != ()] + [["dance", "danse"], [["dance"]], "dance,datm", [1]],
        "rates": [*NUMBERS, *TEXTS, *[one for one in OBJECTS if one != ()], [0.1, math.nan], [1.5], ["0.4"], [True]],
        "ipc": [*counts, [1, 0], [1, "10"], [math.nan], [True], [2.0]],
        "seeds": counts,
        "device": [*text, "cuda:99", "gpu", "cpu:x", "meta", "cuda:-1"],
        "workers": counts,
        "engine": [*text, "submitit", "slrum", "LOCAL"],
        "data_dir": [*NUMBERS, *PATHS, *[one for one in OBJECTS if one != "true"]],
        "store_dir": [*NUMBERS, *PATHS, *[one for one in OBJECTS if one != "true"]],
    }[name]


STUDY = (
    *("profile", "dataset", "methods", "rates", "ipc", "seeds", "device", "workers", "engine"),
    *("data_dir", "store_dir"),
)


@pytest.mark.parametrize("name", STUDY)
def test_a_wrong_value_in_a_notebook_is_refused(name, tally):
    for value in bad_values(name):
        refused(parameters.check, {name: value})
        tally(PROMISE)


@pytest.mark.parametrize("kind", [parameters.Parameters, own_parameters.OwnParameters])
def test_a_misspelt_name_is_refused_and_the_right_one_suggested(kind, tries, tally):
    check = parameters.check if kind is parameters.Parameters else own_parameters.check
    known = [one.name for one in fields(kind) if one.name not in parameters.OF_SOME]
    draws = random.Random(0)
    for _ in range(tries(60, 200)):
        name = draws.choice(known)
        wrong = misspelt(name, draws)
        if wrong in known:
            continue
        message = refused(check, {wrong: 1})
        assert f"The parameter {wrong!r} is unknown" in message
        assert f"Did you mean {name!r}?" in message
        tally(PROMISE)


OWN = {
    "method": [*NUMBERS, *TEXTS, *OBJECTS, "full", "rcig"],
    "ipc": [math.nan, math.inf, 2.5, *TEXTS, *OBJECTS],
    "images": [math.nan, 2.5, "10", True, [10]],
    "size": [math.nan, 32.5, "32", True],
    "seed": [math.nan, 1.5, "0", True, None],
    "noise": [0.3, *[one for one in TEXTS if one], ["clean"], "symmetric", "symmetric:nan", "symmetric:2"],
    "profile": [*NUMBERS, *TEXTS, *OBJECTS],
    "device": [*NUMBERS, *TEXTS, *OBJECTS, "cuda:99"],
    "compare": ["true", 1, None, 0.0],
}


@pytest.mark.parametrize("name", OWN)
def test_a_wrong_value_in_the_notebook_on_own_images_is_refused(name, tally):
    for value in OWN[name]:
        refused(own_parameters.check, {name: value})
        tally(PROMISE)


def run(**given: object) -> None:
    """A study of random images."""
    usual = {"methods": "random"} | ({} if "noises" in given else {"rates": 0})
    study.run(study.grid(**(usual | given)), "no-such-store", device="cpu", progress=False)


def bad_calls() -> Iterator[tuple[Callable, dict]]:
    for value in [*NUMBERS, *TEXTS, True, None, 0]:
        yield ddlnl.denoise, {"data": "digits", "ipc": value}
        yield run, {"ipcs": [value]}
        if value is not None:
            yield run, {"seeds": value}
    for value in PATHS:
        yield study.run, {"cells": [], "store_dir": value}
        yield run, {"dataset": f"{value}.npz"}
        if value:
            yield study.run, {"cells": study.grid("cifar10", 0, "random"), "data_dir": value}
    for value in [*TEXTS, "danse", "FULL"]:
        yield run, {"methods": [value]}
        yield run, {"profile": value}
        yield ddlnl.denoise, {"data": "digits", "method": value}
        yield run, {"noises": [value]}
        yield noise.parse, {"spec": value}
    for value in [
        "symmetric:",
        "symmetric:1.5",
        "symmetric:-0.1",
        "symmetric:inf",
        "human:",
        "human:..",
        "longtail:10",
    ]:
        yield run, {"noises": value}


def test_a_wrong_argument_in_python_is_refused(tally):
    for call, given in bad_calls():
        refused(call, **given)
        tally(PROMISE)


@pytest.mark.parametrize(
    "words",
    [
        *(["study", "--profile", value] for value in (*TEXTS, "dmeo")),
        *(["study", "--methods", value] for value in (*TEXTS, "danse")),
        *(["study", "--methods", "random", "--rates", value] for value in ("nan", "inf", "-0.1", "1.01", "x", "")),
        *(["study", "--methods", "random", "--ipcs", value] for value in ("0", "-3", "2.5", "nan", "", "1e3")),
        *(["study", "--methods", "random", "--workers", value] for value in ("0", "-1", "x")),
        *(["study", "--methods", "random", "--engine", value] for value in ("slrum", "", "..")),
        *(["study", "--methods", "random", "--device", value] for value in ("cuda:99", "", "gpu")),
        ["study", "--methods", "random", "--rates", "0.4", "--noises", "clean"],
        *(["study", "--dataset", value] for value in ("cifar11", "../x.npz", "", "/etc/passwd")),
        *(["denoise", value, "out"] for value in ("absent", "", "../x.npz")),
        *(["denoise", "digits", "out", "--ipc", value] for value in ("0", "1", "-4", "x", "100000")),
        ["studdy"],
        ["study", "--profil"],
        ["data", "fetch"],
        ["data", "import-rcig", "absent", "out"],
    ],
    ids=repr,
)
def test_a_wrong_word_on_the_command_line_ends_with_code_2(words, tally, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        __main__.main(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip()
    assert not list(tmp_path.iterdir())
    tally(PROMISE)
