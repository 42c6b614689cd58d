"""How far RCIG gets on clean CIFAR-10 at IPC 1 in a given processor time: the accuracy of students, run by run.

    python -m ddlnl.rcig_curve OUT.csv --minutes 60

The networks are the published ones (width 128, softplus), the students' protocol too. A run of an hour has room for
some hundred iterations of the published 10,000, so everything else is the laptop profile's: larger steps, and conjugate
gradients for both solves. A killed measurement goes on from the store.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ddlnl import datasets, evaluation, methods, preprocess, rcig, rcig_evaluation
from ddlnl.errors import InputError
from ddlnl.files import replacing
from ddlnl.profiles import PROFILES, depth_for
from ddlnl.rcig_settings import Settings
from ddlnl.store import Progress, Store, key_of

MARKS = (0.0, 1 / 4, 1 / 2, 1.0)  # of the time: when the set is evaluated


def settings(width: int = 128) -> Settings:
    """Those of the laptop profile at IPC 1, for networks that begin with `width` and without an end."""
    return replace(PROFILES["laptop"].rcig.settings_for("cifar10", "clean", 1), width=width, iterations=100_000)


def within(run: rcig.Rcig, seconds: float, progress: Progress) -> Iterator[tuple[float, int, float]]:
    """Iterate until `seconds` of this process are used up; yield (mark, iteration, seconds so far) as each of `MARKS`
    is passed, for the last time at the end. Seconds of killed processes count up to the state that was resumed."""
    spent = torch.zeros((), dtype=torch.float64)
    first, state = progress.load() or (0, None)
    if state is None:
        run.begin()
    else:
        spent.copy_(state.pop("spent"))
        run.load(state)
    marks = [mark for mark in MARKS if mark * seconds >= spent]
    for iteration in range(first, run.settings.iterations):
        while marks and marks[0] * seconds <= spent:
            yield marks.pop(0), iteration, float(spent)
        if not marks:
            return
        progress.save(iteration, functools.partial(_state, run, spent))
        began = time.process_time()
        run.iterate(iteration)
        spent += time.process_time() - began


def _state(run: rcig.Rcig, spent: Tensor) -> dict[str, Tensor]:
    return run.state() | {"spent": spent}


def measure(
    minutes: float,
    students: int = 3,
    data_dir: str | Path | None = None,
    store_dir: str | Path | None = None,
    dataset: str = "cifar10",
    width: int = 128,
    protocol: rcig_evaluation.Protocol | None = None,
) -> pd.DataFrame:
    """One row per mark and run: `iterations`, `minutes` of processor time, `run` ("augmented" or "not augmented"),
    `students`, and the mean and sample standard deviation of their last test accuracy in %.

    Before the end one student is trained per mark. protocol: None takes the published one. Raises `InputError` for a
    time that is not positive, or what `datasets.load` refuses.
    """
    if not minutes > 0:
        raise InputError(f"The time is {minutes!r} minutes, and it must be positive.")
    data, device = datasets.load(dataset, data_dir), torch.device("cpu")
    store, chosen = Store(store_dir), settings(width)
    chosen = replace(chosen, depth=depth_for(data.train.images.shape[1]))
    protocol = protocol or rcig_evaluation.published_protocol("cifar10", 1)
    whitening = preprocess.fit(data.train.images, "zca-relative", dataset)
    exam = evaluation.on_device(data.test, whitening, device), torch.from_numpy(data.test.clean)
    key = key_of(["rcig curve", methods.ALGORITHM, data.train.fingerprint, asdict(chosen), asdict(protocol), minutes])
    runs = {"augmented": protocol, "not augmented": protocol.without_augmentation()}
    counts = {mark: students if mark == 1 else 1 for mark in MARKS}
    places = {(mark, name): f"{key}-{mark:g}-{name[:3]}-{counts[mark]}" for mark in MARKS for name in runs}
    if any(store.record("curve", place) is None for place in places.values()):
        run = rcig.Rcig(data.train, 1, chosen, whitening, 0, device)
        for mark, iteration, spent in within(run, 60 * minutes, store.progress(key)):
            product = run.product()
            for name, one in runs.items():
                place = places[mark, name]
                tested = _accuracies(product, one, exam, counts[mark], store.progress(place))
                found = {"iterations": iteration, "minutes": round(spent / 60, 1), "test": tested}
                store.save_record("curve", place, found)
    rows = [
        {"run": name, "students": counts[mark]} | store.record("curve", place) for (mark, name), place in places.items()
    ]
    table = pd.DataFrame(rows)
    each = table.pop("test").map(torch.tensor)
    return table.assign(accuracy=each.map(lambda one: 100 * float(one.mean())), std=each.map(_spread))


def _accuracies(
    product: dict[str, Tensor],
    protocol: rcig_evaluation.Protocol,
    exam: tuple[Tensor, Tensor],
    students: int,
    progress: Progress,
) -> list[float]:
    curves = rcig_evaluation.train_students(
        product["images"], product["labels"], protocol, {"test": exam}, range(students), progress
    )
    return [points[-1] for points in curves.test]


def _spread(each: Tensor) -> float:
    return 100 * float(each.std()) if len(each) > 1 else float("nan")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the table; `arguments` are those of the command line unless given."""
    parser = argparse.ArgumentParser("python -m ddlnl.rcig_curve", description=__doc__.split("\n")[0])
    parser.add_argument("out", metavar="OUT.csv")
    parser.add_argument("--minutes", type=float, default=60.0, help="processor time to distil (default: %(default)s)")
    parser.add_argument("--students", type=int, default=3, help="networks at the end (default: %(default)s)")
    parser.add_argument("--data-dir", metavar="D", help="where archives are (default: $DDLNL_DATA, else user's cache)")
    parser.add_argument("--store-dir", metavar="D", help="where results go (default: $DDLNL_STORE, else user's data)")
    options = parser.parse_args(arguments)
    try:
        table = measure(options.minutes, options.students, options.data_dir, options.store_dir)
    except InputError as error:
        parser.exit(2, f"{error}\n")
    with replacing(Path(options.out)) as file:
        file.write(table.round(2).to_csv(index=False).encode())
    print(table.round(1).to_string(index=False))


if __name__ == "__main__":
    main()
