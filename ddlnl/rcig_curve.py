"""How far RCIG gets on clean CIFAR-10 at IPC 1 in a given processor time: the accuracy of students, run by run.

    python -m ddlnl.rcig_curve OUT.csv --minutes 60

The networks are the published ones (width 128, softplus), the students' protocol too. A run of an hour has room for
some hundred iterations of the published 10,000, so everything else is the laptop profile's: larger steps, and conjugate
gradients for both solves. A killed measurement goes on from the store.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ddlnl import datasets, evaluation, outputs, preprocess, rcig, rcig_evaluation
from ddlnl.errors import InputError
from ddlnl.files import replacing
from ddlnl.methods import ALGORITHM, is_whole
from ddlnl.profiles import PROFILES, depth_for
from ddlnl.rcig_settings import Settings
from ddlnl.store import Store, key_of, write_tensors

MARKS = (0.0, 1 / 4, 1 / 2, 1.0)  # of the time: when the set is evaluated


def settings(width: int = 128) -> Settings:
    """Those of the laptop profile at IPC 1, for networks that begin with `width` and without an end."""
    return replace(PROFILES["laptop"].rcig.settings_for("cifar10", "clean", 1), width=width, iterations=100_000)


def distil(run: rcig.Rcig, seconds: float, store: Store, key: str) -> None:
    """Iterate until `seconds` of this process are used up; the set at each of `MARKS` is kept as an artefact, with the
    iterations and seconds so far. Seconds of killed processes count up to the state that was resumed."""
    progress, spent = store.progress(key), torch.zeros((), dtype=torch.float64)
    first, state = progress.load() or (0, None)
    if state is None:
        run.begin()
    else:
        spent.copy_(state.pop("spent"))
        run.load(state)
    for iteration in range(first, run.settings.iterations):
        for path in (store.artefact_path(_name(key, mark)) for mark in MARKS if mark * seconds <= spent):
            if not path.exists():
                write_tensors(path, run.product(), {"iterations": iteration, "seconds": float(spent)})
        if spent >= seconds:
            return
        progress.save(iteration, functools.partial(_state, run, spent))
        began = time.process_time()
        run.iterate(iteration)
        spent += time.process_time() - began


def _state(run: rcig.Rcig, spent: Tensor) -> dict[str, Tensor]:
    return run.state() | {"spent": spent}


def _name(key: str, mark: float) -> str:
    return f"{key}-{mark:g}"


def measure(
    minutes: float,
    students: int = 3,
    data_dir: str | Path | None = None,
    store_dir: str | Path | None = None,
    dataset: str = "cifar10",
    width: int = 128,
    protocol: rcig_evaluation.Protocol | None = None,
) -> pd.DataFrame:
    """One row per mark and run: `run` ("augmented" or "not augmented"), `students`, `iterations`, `minutes` of
    processor time, and the mean and sample standard deviation of the students' last test accuracy in %.

    Before the end one student is trained per mark. protocol: None takes the published one. Raises `InputError` for a
    time or a number of students that cannot be, or what `datasets.load` refuses.
    """
    if not 0 < minutes < math.inf:
        raise InputError(f"The time is {minutes!r} minutes, and it must be positive and finite.")
    if not is_whole(students) or students < 1:
        raise InputError(f"The number of students is {students!r}, and it must be a whole number of at least 1.")
    data, device = datasets.load(dataset, data_dir), torch.device("cpu")
    store, chosen = Store(store_dir), settings(width)
    chosen = replace(chosen, depth=depth_for(data.train.images.shape[1]))
    protocol = protocol or rcig_evaluation.published_protocol("cifar10", 1)
    whitening = preprocess.fit(data.train.images, "zca-relative", dataset)
    exam = evaluation.on_device(data.test, whitening, device), torch.from_numpy(data.test.clean)
    key = key_of(["rcig curve", ALGORITHM, data.train.fingerprint, asdict(chosen), asdict(protocol), minutes])
    rows = []
    with store.lock(key):
        if any(store.tensors(_name(key, mark)) is None for mark in MARKS):
            distil(rcig.Rcig(data.train, 1, chosen, whitening, 0, device), 60 * minutes, store, key)
        for mark in MARKS:
            product, about = store.tensors(_name(key, mark))
            place = {"iterations": about["iterations"], "minutes": about["seconds"] / 60}
            for run, one in {"augmented": protocol, "not augmented": protocol.without_augmentation()}.items():
                count = students if mark == 1 else 1
                tested = _tested(product, one, exam, count, store, f"{_name(key, mark)}-{run[:3]}-{count}")
                rows.append({"run": run, "students": count} | place | tested)
        store.forget_progress(key)
    return pd.DataFrame(rows)


def _tested(
    product: dict[str, Tensor],
    protocol: rcig_evaluation.Protocol,
    exam: tuple[Tensor, Tensor],
    students: int,
    store: Store,
    key: str,
) -> dict[str, float]:
    """What students reach on the test images, from the store where they have been trained before."""
    record = store.record("curve", key)
    if record is None:
        given = product["images"], product["labels"], protocol, {"test": exam}, range(students), store.progress(key)
        record = {"test": [points[-1] for points in rcig_evaluation.train_students(*given).test]}
        store.save_record("curve", key, record)
    each = 100 * torch.tensor(record["test"])
    return {"accuracy": float(each.mean()), "std": float(each.std()) if len(each) > 1 else math.nan}


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
        outputs.require_file(options.out)
        table = measure(options.minutes, options.students, options.data_dir, options.store_dir)
        with replacing(Path(options.out)) as file:
            file.write(table.round(2).to_csv(index=False).encode())
    except (InputError, OSError) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "Stopped. The same command goes on from the store.\n")
    print(table.round(1).to_string(index=False))


if __name__ == "__main__":
    main()
