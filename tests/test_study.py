from __future__ import annotations

import functools
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import image_set, profile

import ddlnl
from ddlnl import cells, claims, curves, robust, store, study
from ddlnl.cells import Cell
from ddlnl.errors import InputError
from ddlnl.profiles import PROFILES

# What may differ between two runs of one cell: times, and memory, which the system decides.
STEPS = ["seconds_experts", "seconds_distil", "seconds_evaluate", "seconds_beside"]
VOLATILE = ["seconds", *STEPS, "finished", "peak_memory_mib"]
RATES = (0.0, 0.5)


def write_small_archive(folder: Path) -> str:
    arrays = {"class_names": np.array(["a", "b", "c"])}
    for part, seed in (("train", 0), ("test", 1)):
        images = image_set(per_class=14, seed=seed)
        arrays |= {f"{part}_images": images.images, f"{part}_labels": images.observed}
    path = folder / "small.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture
def archive_path(tmp_path, monkeypatch):
    monkeypatch.setitem(PROFILES, "demo", profile())
    cells._load.cache_clear()
    cells._prepared.cache_clear()
    return write_small_archive(tmp_path)


def lasting(rows):
    return rows.drop(columns=VOLATILE).to_dict("records")


def test_a_study_gives_one_row_per_cell_and_the_second_run_only_reads(archive_path, tmp_path, monkeypatch):
    grid = study.grid(archive_path, rates=RATES, ipcs=[2], seeds=1)
    assert len(grid) == 2 * (1 + 6)
    first = study.run(grid, tmp_path / "store", device="cpu", progress=False)
    assert len(first) == len(grid)
    for rule in ("last", "validation", "best_on_test"):
        scores = np.array(first[f"accuracies_{rule}"].tolist())
        assert scores.shape == (len(grid), 2)
        np.testing.assert_allclose(scores.mean(1), first[f"accuracy_{rule}"])
        np.testing.assert_allclose(scores.std(1, ddof=1), first[f"std_{rule}"])
    assert first["threads"].eq(PROFILES["demo"].threads).all()
    assert first["realised_rate"].between(0, 1).all()
    assert (first.query("rate == 0.5")["realised_rate"] > 0.2).all()
    monkeypatch.setattr(study.engines, "run_cell", lambda *_: pytest.fail("a finished cell was computed again"))
    second = study.run(grid, tmp_path / "store", device="cpu", progress=False)
    assert first.to_dict("records") == second.to_dict("records")
    assert len(store.table(tmp_path / "store")) == len(grid)


def slow(monkeypatch, seconds, place, name):
    """Let the clock of the store go forward by so many seconds whenever `place.name` is called."""
    step, clock, late = getattr(place, name), store.time.monotonic, [0]

    def slower(*arguments):
        late[0] += seconds
        return step(*arguments)

    monkeypatch.setattr(place, name, slower)
    monkeypatch.setattr(store.time, "monotonic", lambda: clock() + late[0])


@pytest.mark.parametrize("method", ["dance", "full"])
def test_tests_on_the_way_are_no_part_of_the_seconds_that_training_or_distilling_took(
    archive_path, tmp_path, monkeypatch, method
):
    enter, clock, late = curves.Marks.enter, store.time.monotonic, [0]

    def late_enter(marks, point, predict):
        def late_predict(images):
            late[0] += 1000
            return predict(images)

        enter(marks, point, late_predict)

    monkeypatch.setattr(curves.Marks, "enter", late_enter)
    monkeypatch.setattr(store.time, "monotonic", lambda: clock() + late[0])
    grid = study.grid(archive_path, rates=0.5, methods=[method], ipcs=[2], seeds=1)
    row = study.run(grid, tmp_path / "store", device="cpu", progress=False).iloc[0]
    tests = 2 * sum(len(curves["epochs"]) for curves in row["curves"])  # on test and on validation images
    assert tests == {"dance": 2 * 2 * 2, "full": 2 * 3}[method]
    assert row[STEPS].sum() == pytest.approx(row["seconds"])
    assert row["seconds_beside"] // 1000 == tests
    assert row[STEPS[:3]].max() < 1000


def test_experts_are_trained_once_per_noise_setting_and_shared_by_all_ipcs_and_methods(
    archive_path, tmp_path, monkeypatch
):
    trained = []
    train = cells.methods.train_experts
    monkeypatch.setattr(cells.methods, "train_experts", lambda *a: trained.append(a) or train(*a))
    grid = study.grid(archive_path, rates=RATES, methods=["dance", "predicted"], ipcs=[1, 2], seeds=1)
    study.run(grid, tmp_path / "store", device="cpu", progress=False)
    assert len(trained) == len(RATES)


def test_methods_that_learn_with_noise_are_cells_of_all_images_and_coteaching_knows_the_noise_rate(
    archive_path, tmp_path, monkeypatch
):
    asked, objective = {}, robust.objective
    monkeypatch.setattr(
        robust, "objective", lambda name, known, *sizes: asked.update({name: known}) or objective(name, known, *sizes)
    )
    grid = study.grid(archive_path, rates=0.5, methods=["full", *robust.METHODS], ipcs=[1, 2], seeds=1)
    assert [(cell.method, cell.ipc) for cell in grid] == [("full", 0), ("gce", 0), ("elr", 0), ("coteaching", 0)]
    table = study.run(grid, tmp_path / "store", device="cpu", progress=False)
    assert len(set(map(tuple, table["accuracies_last"]))) > 1
    assert [row["full"]["recipe"]["cutmix"] for row in table["settings"]] == [0.5, 0, 0, 0]
    assert asked["coteaching"].forget_rate == table["realised_rate"].iloc[0]
    assert claims.distillers(table) == []
    with pytest.raises(InputError, match=r"gce, all images, seed 0\) trains on all images"):
        study.distilled(grid[1], tmp_path / "store")


def test_cells_that_clean_first_share_one_cleaning_and_train_on_what_it_leaves(archive_path, tmp_path, monkeypatch):
    pytest.importorskip("cleanlab")
    found = []
    find = cells.cleaned.find
    monkeypatch.setattr(cells.cleaned, "find", lambda *a: found.append(find(*a)) or found[-1])
    grid = study.grid(archive_path, rates=0.5, methods=["dance", "cleaned", "cleaned_dance"], ipcs=[1, 2], seeds=1)
    assert [(cell.method, cell.ipc) for cell in grid][2:] == [
        ("cleaned", 0),
        ("cleaned_dance", 1),
        ("cleaned_dance", 2),
    ]
    table = study.run(grid, tmp_path / "store", device="cpu", progress=False)
    assert len(found) == 1
    assert len(found[0]["suspected"]) > 0
    raw, first = table.iloc[0], table.iloc[2]
    assert first["notes"]["dropped"] == len(found[0]["suspected"]) - first["notes"]["filled_up"]
    assert first["train_images"] == raw["train_images"] - first["notes"]["dropped"]
    for column in ("realised_rate", "noise_hash", "data_hash"):
        assert table[column].nunique() == 1
    assert len({row["cleaning"] for row in table["parents"][2:]}) == 1
    assert claims.distillers(table) == ["dance"]
    assert study.distilled(grid[4], tmp_path / "store").images.shape[0] == 6


def test_cells_that_clean_first_are_refused_before_any_work_without_cleanlab(archive_path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    grid = study.grid(archive_path, rates=0.5, methods=["full", "cleaned"], ipcs=[1], seeds=1)
    with pytest.raises(InputError, match="pip install cleanlab"):
        study.run(grid, tmp_path / "store", device="cpu", progress=False)
    assert not (tmp_path / "store" / "records").exists()


def test_a_cell_gives_the_same_record_alone_and_in_two_workers(archive_path, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(PROGRAM.format(archive=archive_path, store=str(tmp_path / "workers"), workers=2))
    subprocess.run([sys.executable, script], check=True, env=environment(threads=2))
    alone = study.run(the_grid(archive_path), tmp_path / "alone", device="cpu", progress=False)
    together = study.run(the_grid(archive_path), tmp_path / "workers", device="cpu", progress=False)
    assert lasting(alone) == lasting(together)


PROGRAM = """
import small
from ddlnl import study
from ddlnl.profiles import PROFILES
from ddlnl.store import Progress

PROFILES["demo"] = small.profile()  # also in spawned workers, which import this file
init = Progress.__init__
Progress.__init__ = lambda self, store, path, interval: init(self, store, path, 0.0)

if __name__ == "__main__":
    from test_study import the_grid
    study.run(the_grid({archive!r}), {store!r}, device="cpu", workers={workers}, progress=False)
"""


def the_grid(archive_path: str) -> list[Cell]:
    return study.grid(
        archive_path, rates=[0.5], methods=["full", "dance", "predicted", "datm", "rcig"], ipcs=[2], seeds=2
    )


def environment(threads: int = 1) -> dict[str, str]:
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}


def test_a_killed_study_ends_with_the_records_it_would_have_had(archive_path, tmp_path):
    """kill -9 at random moments of the run, then finish it: the same records, bit for bit, but for times."""
    script = tmp_path / "run.py"

    def start(place: str) -> subprocess.Popen:
        script.write_text(PROGRAM.format(archive=archive_path, store=str(tmp_path / place), workers=1))
        return subprocess.Popen([sys.executable, script], env=environment())

    def written() -> set[tuple[str, int]]:
        files = (path for kind in ("progress", "records") for path in (tmp_path / "killed" / kind).rglob("*.*"))
        return {(path.name, path.stat().st_mtime_ns) for path in files if path.suffix in (".json", ".safetensors")}

    assert start("whole").wait() == 0
    moments = random.Random(0)
    for _ in range(3):
        before = written()
        process = start("killed")
        while process.poll() is None and written() == before:  # until it has computed something new
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start("killed").wait() == 0
    whole, killed = (store.table(tmp_path / place).sort_values("key") for place in ("whole", "killed"))
    assert len(whole) == 10
    assert lasting(whole) == lasting(killed)
    assert not list((tmp_path / "killed" / "progress").glob("*.safetensors"))


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.mark.parametrize(
    ("method", "owner", "name", "call"),
    [
        ("dance", "dance.Dance", "iterate", 1),
        ("dance", "dance.Dance", "iterate", 3),
        ("dance", "training", "_epoch", 2),  # in the experts
        ("dance", "training", "_epoch", 4),  # in the students of the first checkpoint
        ("dance", "training", "_epoch", 7),  # in those of the last one, after the experts and the first checkpoint
        ("dance", "store.Store", "save_record", 1),
        ("dance", "store.Store", "save_record", 2),
        ("dance", "store.Store", "save_record", 3),
        ("datm", "trajectories", "train_epoch", 1),
        ("datm", "trajectories", "train_epoch", 3),
        ("datm", "datm.Datm", "iterate", 1),
        ("datm", "datm.Datm", "iterate", 4),
        ("datm", "training", "_epoch", 2),  # in the students of the first checkpoint
        ("datm", "training", "_epoch", 5),  # in those of the last one
        ("rcig", "rcig.Rcig", "begin", 1),
        ("rcig", "rcig.Rcig", "iterate", 1),
        ("rcig", "rcig.Rcig", "iterate", 4),
        ("rcig", "rcig_evaluation._Students", "step", 3),  # in the students of the first checkpoint
        ("rcig", "rcig_evaluation._Students", "step", 23),  # in those of the last one
        ("rcig", "rcig_evaluation._Students", "step", 30),  # in those without augmentation
    ],
)
def test_a_cell_stopped_anywhere_resumes_to_the_same_record(
    archive_path, tmp_path, monkeypatch, method, owner, name, call
):
    cell = Cell(archive_path, "symmetric:0.5", method, 2, 0, "demo")
    whole = study.run([cell], tmp_path / "whole", device="cpu", progress=False)
    assert (
        len(whole["curves"][0]) == {"dance": 2, "datm": 3, "rcig": 3}[method]
    )  # checkpoints, the first iteration among them
    monkeypatch.setattr(store.Progress, "save", functools.partialmethod(_save_always, store.Progress.save))
    place = functools.reduce(getattr, owner.split("."), ddlnl)
    original, calls = getattr(place, name), itertools.count(1)

    def stop(*arguments):
        if next(calls) == call:
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, stop)
        with pytest.raises(Killed):
            study.run([cell], tmp_path / "stopped", device="cpu", progress=False)
    assert store.table(tmp_path / "stopped").empty
    resumed = study.run([cell], tmp_path / "stopped", device="cpu", progress=False)
    assert lasting(whole) == lasting(resumed)


def _save_always(self, original, step, state):
    self.interval = 0.0
    original(self, step, state)


def test_an_evaluation_lost_behind_a_resumed_run_is_made_again(archive_path, tmp_path, monkeypatch):
    cell = Cell(archive_path, "clean", "dance", 2, 0, "demo")
    whole = study.run([cell], tmp_path, device="cpu", progress=False)
    monkeypatch.setattr(store.Progress, "save", functools.partialmethod(_save_always, store.Progress.save))
    iterate, calls = ddlnl.dance.Dance.iterate, itertools.count(1)
    for path in (tmp_path / "records").rglob("*.json"):
        path.unlink()

    def stop(*arguments):
        if next(calls) == 3:
            raise Killed
        return iterate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ddlnl.dance.Dance, "iterate", stop)
        with pytest.raises(Killed):
            study.run([cell], tmp_path, device="cpu", progress=False)
    (first,) = (tmp_path / "records" / "evaluation").glob("*iteration-0.json")
    first.write_text("{}")
    with pytest.warns(UserWarning, match="is not a readable record"):
        resumed = study.run([cell], tmp_path, device="cpu", progress=False)
    assert lasting(whole) == lasting(resumed)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"methods": ["danse"]}, "Did you mean 'dance'"),
        ({"profile": "lapdog"}, "Did you mean 'laptop'"),
        ({"rates": [1.5]}, "rate"),
        ({"rates": [float("nan")]}, "rate"),
        ({"ipcs": 0}, "at least 1"),
        ({"ipcs": [True]}, "whole number"),
        ({"ipcs": [2.0]}, "whole number"),
        ({"seeds": 0}, "at least 1"),
        ({"seeds": 10**9}, "at most 10000"),
        ({"noises": ["symetric:0.4"]}, "Did you mean 'symmetric'"),
        ({"rates": [0.4], "noises": ["clean"]}, "either rates or noises"),
        ({"rates": 0.0, "noises": "clean"}, "either rates or noises"),
        ({"rates": "0"}, "text '0', and they must be one number"),
    ],
)
def test_an_impossible_grid_is_refused_with_one_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        study.grid(**arguments)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ({"ipcs": 15}, {}, "more than the"),
        ({"noises": ["human:worst"]}, {}, "human"),
        ({}, {"device": "cuda:77"}, "cannot be used"),
        ({}, {"workers": 0}, "at least 1"),
        ({}, {"workers": 10**30}, "at most 10000"),
        ({}, {"engine": "slrum"}, "local, slurm"),
    ],
)
def test_an_impossible_run_is_refused_before_any_training(
    archive_path, tmp_path, monkeypatch, arguments, options, sentence
):
    monkeypatch.setattr(study.engines, "run_cell", lambda *_: pytest.fail("work was started"))
    grid = study.grid(archive_path, **(arguments if "noises" in arguments else {"rates": [0.0]} | arguments))
    with pytest.raises(InputError, match=sentence):
        study.run(grid, tmp_path, progress=False, **options)


def test_a_failing_cell_is_named(archive_path, tmp_path, monkeypatch):
    monkeypatch.setattr(study.engines, "run_cell", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match=r"symmetric:0\.5, random, IPC 1, seed 0\) failed: division by zero"):
        study.run([Cell(archive_path, "symmetric:0.5", "random", 1, 0, "demo")], tmp_path, device="cpu", progress=False)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"profile": "lapdog"}, "Did you mean 'laptop'"),
        ({"method": "rndom"}, "Did you mean 'random'"),
        ({"method": "random", "ipc": 0}, "at least 1"),
    ],
)
def test_an_impossible_cell_made_by_hand_is_refused(archive_path, tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        study.run([replace(Cell(archive_path, "clean", "dance", 1, 0, "demo"), **changes)], tmp_path, progress=False)


def test_images_that_are_not_square_are_refused(tmp_path, archive_path):
    arrays = dict(np.load(archive_path))
    wide = {name: array[:, :6] if name.endswith("images") else array for name, array in arrays.items()}
    np.savez(tmp_path / "wide.npz", **wide)
    with pytest.raises(InputError, match="6x8 pixels, and they must be square"):
        study.run([Cell(str(tmp_path / "wide.npz"), "clean", "random", 1, 0, "demo")], tmp_path, progress=False)


def test_cells_that_train_experts_come_first_so_that_workers_do_not_wait():
    grid = study.grid("digits", rates=[0.0, 0.4], methods=["full", "dance"], ipcs=[1, 10], seeds=1)
    assert [(cell.noise, cell.ipc) for cell in study.in_order(grid)[:4]] == [
        ("clean", 0),
        ("clean", 1),
        ("symmetric:0.4", 0),
        ("symmetric:0.4", 1),
    ]


def test_held_out_images_are_noisy_and_never_trained_on(archive_path):
    data = cells.prepare(Cell(archive_path, "symmetric:0.5", "full", 0, 0, "demo"))
    train, validation = ({image.tobytes() for image in part.images} for part in (data.train, data.validation))
    assert len(train) == len(data.train) == 42 - 4
    assert len(validation) == len(data.validation) == 4
    assert not train & validation
    noisy = ddlnl.noise.corrupt(ddlnl.datasets.load(archive_path).train, "symmetric:0.5", 0)
    observed = {image.tobytes(): label for image, label in zip(noisy.images, noisy.observed, strict=True)}
    assert all(
        observed[image.tobytes()] == label
        for part in (data.train, data.validation)
        for image, label in zip(part.images, part.observed, strict=True)
    )
    assert (data.test.observed == data.test.clean).all()


def test_the_images_of_one_noise_setting_are_held_at_a_time(archive_path):
    """A copy of all training images, with which several workers fill a machine's memory."""
    held = []
    for spec in ("clean", "symmetric:0.5"):
        held.append(weakref.ref(cells.prepare(Cell(archive_path, spec, "full", 0, 0, "demo"))))
    gc.collect()
    assert [one() is None for one in held] == [True, False]


def test_no_method_sees_clean_labels(archive_path):
    noisy = ddlnl.noise.corrupt(ddlnl.datasets.load(archive_path).train, "symmetric:0.5", 0)
    blind = replace(noisy, clean=noisy.clean[::-1].copy())
    for method in ("dance", "datm", "rcig", "random", "random_soft", "predicted"):
        first, second = (ddlnl.distill(one, method=method, ipc=2, device="cpu") for one in (noisy, blind))
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)


def test_importing_human_labels_leaves_other_records_valid(archive_path):
    cell = Cell(archive_path, "symmetric:0.5", "random", 1, 0, "demo")
    before = cells.cell_key(cell)
    arrays = dict(np.load(archive_path))
    np.savez(archive_path, **arrays, observed_labels__worst=arrays["train_labels"][::-1])
    assert cells.cell_key(cell) == before
    human = replace(cell, noise="human:worst")
    key = cells.cell_key(human)
    np.savez(archive_path, **arrays, observed_labels__worst=np.roll(arrays["train_labels"], 1))
    os.utime(archive_path, ns=(1, 1))
    assert cells.cell_key(human) != key


def test_an_archive_named_from_the_home_folder_is_read_again_where_it_was_replaced(archive_path, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(archive_path).parent))
    cell = Cell(f"~/{Path(archive_path).name}", "clean", "random", 1, 0, "demo")
    before = cells.cell_key(cell)
    assert before == cells.cell_key(replace(cell, dataset=archive_path))
    arrays = dict(np.load(archive_path))
    np.savez(archive_path, **arrays | {"train_images": 255 - arrays["train_images"]})
    with pytest.raises(InputError, match=r"The archive of ~/small\.npz was replaced"):
        cells.require_unchanged(cell, before)


def test_distil_in_memory_gives_a_set_that_trains_students(archive_path):
    from ddlnl import datasets, evaluation, noise

    data = datasets.load(archive_path)
    noisy = noise.corrupt(data.train, "symmetric:0.4", seed=0)
    small = ddlnl.distill(noisy, method="dance", ipc=2, profile="demo", seed=0, device="cpu")
    assert small.images.shape == (6, 3, 8, 8)
    assert small.labels.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    scores = evaluation.evaluate(small, data.test, repeats=2, device="cpu")
    assert 0 <= scores.mean <= 1
    with pytest.raises(InputError, match="at most"):
        ddlnl.distill(noisy, ipc=100)
    with pytest.raises(InputError, match="Did you mean 'random'"):
        ddlnl.distill(noisy, method="rndom")


def test_records_of_other_files_are_found_by_what_they_are_about_with_any_seed(tmp_path, capsys):
    places = [("a", "dance", 10, 1), ("b", "dance", 10, 0), ("c", "dance", 50, 0), ("d", "full", 0, 0)]
    about = {"dataset": "cifar10", "noise": "clean", "profile": "laptop", "imbalance": "none"}
    for key, method, ipc, seed in places:
        body = about | {"method": method, "ipc": ipc, "seed": seed, "accuracy_last": 0.5}
        store.Store(tmp_path).save_record("cell", key, body)
    cells = study.grid(methods=["full", "dance", "random"], rates=[0.0], ipcs=10, profile="laptop")
    table = study.run(cells, records=tmp_path)
    assert list(zip(table["method"], table["ipc"], table["seed"], strict=True)) == [
        ("full", 0, 0),
        ("dance", 10, 0),
        ("dance", 10, 1),
    ]
    assert f"1 of the 3 conditions of this grid have no record in {tmp_path}." in capsys.readouterr().out
    with pytest.raises(InputError, match="has no record of kind 'transfer' of these cells"):
        study.recorded(cells, tmp_path, "transfer")
    with pytest.raises(InputError, match="has no record of kind 'cell' of these cells"):
        study.run(cells, records=tmp_path / "nowhere")


def test_one_rate_method_or_noise_stands_for_a_list_of_it():
    assert study.grid(rates=0.4, methods="dance", ipcs=1) == study.grid(rates=[0.4], methods=["dance"], ipcs=[1])
    assert study.grid(noises="instance:0.2", methods="full") == study.grid(noises=["instance:0.2"], methods=["full"])
