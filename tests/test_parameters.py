"""Notebook parameters: right ones arrive typed, wrong ones are refused in one sentence before any work starts."""

from __future__ import annotations

import ast
import math
from dataclasses import fields
from pathlib import Path

import nbformat
import papermill
import pytest
from executed import execute
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from ddlnl import parameters
from ddlnl.errors import InputError
from ddlnl.methods import DISTILLERS
from ddlnl.own_parameters import OwnParameters
from ddlnl.profiles import PROFILES

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

REFUSED = [
    ({"icp": 50}, "The parameter 'icp' is unknown; .* Did you mean 'ipc'?"),
    ({"Rates": [0.2]}, "The parameter 'Rates' is unknown; .* Did you mean 'rates'?"),
    ({"profile": "dmeo"}, "The profile 'dmeo' is unknown; .* Did you mean 'demo'?"),
    ({"profile": None}, "'profile' is None, and it must be text"),
    ({"dataset": "cifar11"}, "The dataset 'cifar11' is unknown; .* Did you mean 'cifar1"),
    ({"dataset": "nowhere/mine.npz"}, "There is no file nowhere/mine.npz"),
    ({"dataset": 10}, "'dataset' is 10, and it must be text"),
    ({"methods": ["dence"]}, "The method 'dence' is unknown; .* Did you mean 'dance'?"),
    ({"methods": "dance"}, "'methods' is 'dance', and it must be a list"),
    ({"methods": []}, "must be a list with at least one entry"),
    ({"methods": [["dance"]]}, "is unknown"),
    ({"rates": "[0.2, 0.4]"}, "must be a list with at least one entry .*-y 'rates: "),
    ({"rates": 0.4}, "'rates' is 0.4, and it must be a list"),
    ({"rates": [0.2, "0.4"]}, "The rate '0.4' in 'rates' is not allowed"),
    ({"rates": [math.nan]}, "The rate nan in 'rates' is not allowed; a noise rate is a number from 0 to 1"),
    ({"rates": [-0.1]}, "a number from 0 to 1"),
    ({"rates": [1.5]}, "a number from 0 to 1"),
    ({"rates": [True]}, "The rate True"),
    ({"ipc": 0}, "'ipc' is 0, and it must be a whole number of at least 1"),
    ({"ipc": [10, -1]}, "'ipc' is -1"),
    ({"ipc": 10.0}, "'ipc' is 10.0"),
    ({"ipc": "10"}, "'ipc' is '10'"),
    ({"ipc": math.nan}, "'ipc' is nan"),
    ({"ipc": True}, "'ipc' is True"),
    ({"ipc": []}, "'ipc' is \\[\\]"),
    ({"seeds": 0}, "'seeds' is 0, and it must be a whole number of at least 1"),
    ({"seeds": [0, 1]}, "'seeds' is \\[0, 1\\]"),
    ({"device": "gpu"}, "The device 'gpu' cannot be used here"),
    ({"device": 0}, "'device' is 0, and it must be text"),
    ({"data_dir": False}, "'data_dir' is False, and it must be text"),
    ({"store_dir": 3}, "'store_dir' is 3, and it must be text"),
    ({"workers": "2"}, "'workers' is '2', and it must be a whole number"),
    ({"workers": None}, "'workers' is None"),
    ({"engine": "slrum"}, "The engine 'slrum' is unknown; allowed are local, slurm"),
    ({"engine": True}, "'engine' is True, and it must be text"),
]


@pytest.mark.parametrize(("names", "message"), REFUSED, ids=[str(names) for names, _ in REFUSED])
def test_a_wrong_parameter_is_refused_in_one_sentence(names, message):
    with pytest.raises(InputError, match=message) as refusal:
        parameters.check(names)
    assert "\n" not in str(refusal.value)


def test_what_is_none_or_absent_comes_from_the_profile():
    for profile in PROFILES.values():
        given = parameters.check({"profile": profile.name, "dataset": None, "rates": None, "ipc": None})
        assert (given.dataset, given.rates, given.ipc) == (profile.dataset, profile.rates, profile.ipcs)
        assert given.seeds == profile.seeds


def test_given_values_arrive_typed_without_repeats():
    names = {"rates": [0, 0.4, 0.4], "ipc": [50, 10, 50], "methods": ["dance", "dance"], "seeds": 2, "workers": 3}
    given = parameters.check(names)
    assert (given.rates, given.ipc, given.methods) == ((0.0, 0.4), (10, 50), ("dance",))
    assert (given.seeds, given.workers) == (2, 3)
    assert parameters.check({"ipc": 50}).ipc == (50,)


def test_without_a_list_of_methods_every_distiller_is_taken():
    assert parameters.check({"methods": None}).methods == DISTILLERS


def test_a_parameter_of_some_notebooks_is_unknown_to_the_others():
    names = {"imbalances": ["none", "longtail:10", "none"]}
    assert parameters.check(names, "imbalances").imbalances == ("none", "longtail:10")
    with pytest.raises(InputError, match="The parameter 'imbalances' is unknown"):
        parameters.check(names)
    with pytest.raises(InputError, match="'imbalances' is 10, and it must be text"):
        parameters.check({"imbalances": [10]}, "imbalances")


def test_an_archive_of_ones_own_is_a_dataset(tmp_path):
    archive = tmp_path / "mine.npz"
    archive.touch()
    assert parameters.check({"dataset": str(archive)}).dataset == str(archive)


def test_modules_private_names_and_results_of_a_notebook_are_no_parameters():
    given = parameters.check({})
    assert parameters.check({"_": 3, "__doc__": "text", "parameters": parameters, "given": given, "all": (1,)}) == given


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_papermill_explains_every_parameter_of_a_notebook(path):
    explained = papermill.inspect_notebook(path)
    known = OwnParameters if path.stem == "your_data" else parameters.Parameters
    assert set(explained) <= {field.name for field in fields(known)}
    for parameter in explained.values():
        assert parameter["inferred_type_name"] != "None"
        assert len(parameter["help"]) > 10


def checked(path: Path, **given: object) -> dict[str, object]:
    """The names of a notebook after its own call of `check`, with parameters as papermill injects them."""
    first, second = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"][:2]
    names: dict[str, object] = {}
    exec(first, names)
    names |= given
    for line in ast.parse(second).body:
        if isinstance(line, ast.ImportFrom) or ast.unparse(line).startswith("given ="):
            exec(ast.unparse(line), names)
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_parameter_that_only_other_notebooks_have_is_refused_by_naming_those_of_the_notebook(path):
    own, usual = list(papermill.inspect_notebook(path)), checked(path)
    assert checked(path, **{name: getattr(usual["given"], name) for name in own})["given"] == usual["given"]
    everywhere = {field.name for kind in (OwnParameters, parameters.Parameters) for field in fields(kind)}
    for name in everywhere - set(own):
        with pytest.raises(InputError, match=f"'{name}' is unknown; the parameters of this notebook are ") as refusal:
            checked(path, **{name: "laptop"})
        assert sorted(str(refusal.value).split(" are ")[1].split(".")[0].split(", ")) == sorted(own)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_is_a_story_of_at_most_12_short_cells_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) <= 12
    for cell in code:
        assert cell.source.count("\n") < 25
        assert not cell.outputs
        assert cell.execution_count is None
        assert "def " not in cell.source
    assert code[0].metadata.tags == ["parameters"]
    assert "parameters.check(globals()" in code[1].source


def test_a_run_of_the_notebook_with_a_misspelt_parameter_ends_before_any_work(tmp_path):
    notebook = next(path for path in NOTEBOOKS if path.stem == "fig2_symmetric")
    given = {"icp": 50, "store_dir": str(tmp_path / "store")}
    with pytest.raises(papermill.PapermillExecutionError, match="The parameter 'icp' is unknown"):
        execute(notebook, tmp_path / "out.ipynb", **given)
    assert not (tmp_path / "store").exists()


def test_in_a_kernel_that_goes_on_parameters_can_be_changed_and_all_cells_run_again():
    check = "from ddlnl import parameters\ngiven = parameters.check(globals())"
    sources = ["ipc = 10", check, "cells = [1]\nkind = 'symmetric'", "ipc = 1", check, "print(given.ipc)", check]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    NotebookClient(notebook, timeout=120).execute()
    assert notebook.cells[5].outputs[0].text == "(1,)\n"
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in ("ipc = 1\nseed = 2", check)]
    with pytest.raises(CellExecutionError, match=r"'seed' is unknown; .* Did you mean 'seeds'"):
        NotebookClient(notebook, timeout=120).execute()
