"""The benchmark compares things that are equal, says what it measured, and its notebook runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from executed import execute

from ddlnl import bench, export, figures
from ddlnl.bench import __main__ as command
from ddlnl.errors import InputError
from ddlnl.profiles import PROFILES

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "extensions.ipynb"
COLUMNS = [
    *("name", "about", "baseline_ms", "ours_ms", "ratio", "low", "high"),
    *("target", "reached", "difference", "tolerance", "repeats"),
]
TARGETS = {
    "norm_relu_pool_32": 6,
    "norm_relu_pool_16": 4,
    "norm_relu_pool_8": 3,
    "norm_relu_pool_tangent_16": 5,
    "first_convolution": 3,
    "convnet": 1.5,
    "augment_composed": 8,
    "augment_single": 4,
    "training_step": 1.7,
    "training_step_bf16": 4,
    "dance_iteration": 3,
    "dance_iteration_bf16": 6,
    "expert_step": 2,
    "expert_step_bfloat16": 5,
    "matching_tesla": 3,
    "matching_exact": 2.5,
    "matching_unrolled": 3,
    "matching_tesla_bfloat16": 8,
    "matching_exact_bfloat16": 6,
    "rcig_iteration_1": 5,
    "rcig_iteration_10": 5,
}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bench, "SHORTEST", 0.001)


@pytest.fixture(scope="module")
def table():
    """Two quick rows, one with a target and one without."""
    return bench.run(["norm_relu_pool_8", "trajectory"], repeats=3, scale=0.05)


@pytest.mark.parametrize("case", bench.CASES, ids=[case.name for case in bench.CASES])
def test_operator_and_baseline_of_every_row_give_the_same(case):
    for pair in case.build(torch.device("cpu"), 0.05):
        theirs, mine = pair.baseline(), pair.ours()
        assert len(theirs) == len(mine) > 0
        for one, other in zip(theirs, mine, strict=True):
            assert one.shape == other.shape
            assert (one - other).norm() <= case.tolerance * one.norm()
        assert max(one.abs().max() for one in theirs) > 0


def test_the_rows_have_the_targets_that_were_set():
    assert {case.name: case.target for case in bench.CASES if case.target} == TARGETS


def test_the_table_has_the_ratio_with_its_spread_and_says_whether_the_target_is_reached(table):
    assert list(table.columns) == COLUMNS
    assert table["name"].tolist() == ["norm_relu_pool_8", "trajectory_distance"]
    assert (table[["baseline_ms", "ours_ms"]] > 0).all(axis=None)
    assert ((table["low"] <= table["ratio"]) & (table["ratio"] <= table["high"])).all()
    first, second = table.to_dict("records")
    assert first["reached"] == ("yes" if first["ratio"] >= 3 else "no")
    assert math.isnan(second["target"])
    assert second["reached"] == ""


def test_sides_that_disagree_are_not_timed(monkeypatch):
    def build(device, scale):
        return [bench.Pair(lambda: (torch.ones(3),), lambda: (torch.tensor([1, 1, math.nan]),))]

    monkeypatch.setattr(bench, "CASES", (replace(bench.CASES[0], build=build),))
    with pytest.raises(bench.Disagreement, match="norm_relu_pool_32 differ from the baseline's by inf"):
        bench.run()


def test_both_sides_run_in_every_repetition_and_take_turns_at_going_first(monkeypatch):
    calls = []

    def side(name):
        return lambda: calls.append(name) or (torch.ones(1),)

    case = replace(bench.CASES[0], build=lambda device, scale: [bench.Pair(side("baseline"), side("ours"))])
    monkeypatch.setattr(bench, "CASES", (case,))
    monkeypatch.setattr(bench, "SHORTEST", 0)
    bench.run(repeats=3)
    assert calls[-6:] == ["baseline", "ours", "ours", "baseline", "baseline", "ours"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"rows": ["convnte"]},
            "No row starts with 'convnte'; the rows are norm_relu_pool_32, .* Did you mean 'convnet'",
        ),
        ({"repeats": 0}, "repeats is 0, and it must be a whole number of at least 1"),
        ({"threads": 1.5}, "threads is 1.5, and it must be a whole number"),
        ({"device": "gpu"}, "The device 'gpu' cannot be used here"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(given, message):
    with pytest.raises(InputError, match=message) as refusal:
        bench.run(**given)
    assert "\n" not in str(refusal.value)


def test_the_number_of_threads_holds_during_the_run_only():
    before = torch.get_num_threads()
    seen = []
    table = bench.run(
        ["trajectory"], 1, threads=before + 1, scale=0.01, report=lambda row: seen.append(torch.get_num_threads())
    )
    assert seen == [before + 1]
    assert table.attrs["Threads"] == str(before + 1)
    assert torch.get_num_threads() == before


def test_the_command_prints_the_rows_the_verdict_and_the_machine(capsys, monkeypatch):
    monkeypatch.setattr(bench, "CASES", tuple(case for case in bench.CASES if case.name == "trajectory_distance"))
    command.main(["--rows", "traj", "--repeats", "1", "--threads", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "row"
    assert lines[1].startswith("trajectory_distance")
    assert any(line.startswith("0 of 0 targets") for line in lines)
    for fact in ("Processor: ", "Threads: 1", f"torch {torch.__version__}", "Operators: ", "Freed memory: "):
        assert any(fact in line for line in lines)


def test_the_command_refuses_an_unknown_row_with_exit_code_2(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--rows", "convnte"])
    assert end.value.code == 2
    assert "Did you mean 'convnet'?" in capsys.readouterr().err


def test_the_figure_shows_every_ratio_its_range_and_its_target(table):
    figure = figures.speedups(table)
    (ax,) = figure.axes
    ends = [tuple(path.vertices[:, 0]) for path in ax.collections[0].get_paths()]
    assert ends == list(zip(table["low"], table["high"], strict=True))
    drawn = {x for line in ax.get_lines() if line.get_marker() == "o" for x in line.get_xdata()}
    assert drawn == set(table["ratio"])
    assert next(line for line in ax.get_lines() if line.get_marker() == "|").get_xdata()[0] == 3
    assert [label.get_text() for label in ax.get_yticklabels()] == ["norm relu pool 8", "trajectory distance"]
    alt = figures.speedups_alt(table)
    assert f"norm relu pool 8 {table['ratio'][0]:.1f} (target 3)" in alt
    assert f"trajectory distance {table['ratio'][1]:.1f}." in alt


def test_a_dot_is_hollow_where_the_target_is_not_reached(table):
    (ax,) = figures.speedups(table.assign(reached=["no", ""])).axes
    fills = {tuple(line.get_xdata()): line.get_markerfacecolor() for line in ax.get_lines() if line.get_marker() == "o"}
    assert fills[(table["ratio"][0],)] == "white"
    assert fills[(table["ratio"][1],)] == figures.COLOURS["dance"]


def test_every_profile_has_rows_and_repetitions():
    assert set(bench.PROFILES) == set(PROFILES)
    assert bench.left_out() == []
    assert {case.name for case in bench.left_out(bench.PROFILES["demo"]["rows"])} == {
        "convnet",
        "training_step",
        "training_step_bf16",
        "dance_iteration",
        "dance_iteration_bf16",
        "expert_step",
        "expert_step_bfloat16",
        "matching_tesla",
        "matching_exact",
        "matching_unrolled",
        "matching_tesla_bfloat16",
        "matching_exact_bfloat16",
        "rcig_iteration_1",
        "rcig_iteration_10",
    }


def test_the_notebook_becomes_a_page_with_the_verdict(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters.check" in cell.source)
    small = 'bench.PROFILES["demo"] = {"rows": ["norm_relu_pool_8", "augment_single"], "repeats": 1, "scale": 0.02}'
    fewer = "measure = rcig_early_stop.measure\nrcig_early_stop.measure = lambda device: measure((1,), device=device)"
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(f"{small}\nbench.SHORTEST = 0.001\n{fewer}"))
    nbformat.write(notebook, tmp_path / "small.ipynb")
    execute(tmp_path / "small.ipynb", tmp_path / "out.ipynb", device="cpu")
    assert " of 2 targets of speed are reached" in export.summary(tmp_path / "out.ipynb")
    page = export.export(tmp_path / "out.ipynb", tmp_path / "out.html").read_text()
    assert 'alt="Times faster than the eager composition: norm relu pool 8 ' in page
    assert "decrease left (%)" in page
    assert "Where the numbers come from" in page
