from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ddlnl import store as store_module
from ddlnl.errors import DamagedError, InputError
from ddlnl.store import Store, key_of, read_tensors, table, write_tensors

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor([1, 2]),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5),
}


def test_tensors_and_description_come_back_as_they_were_written(tmp_path):
    write_tensors(tmp_path / "file.safetensors", TENSORS, {"words": ["x", 1, None]})
    tensors, meta = read_tensors(tmp_path / "file.safetensors")
    assert meta == {"words": ["x", 1, None]}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert [path.name for path in tmp_path.iterdir()] == ["file.safetensors"]


@pytest.mark.parametrize("position", [3, 40, 150, -2])
def test_a_flipped_bit_or_a_cut_is_found_in_any_part_of_a_file(tmp_path, position):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, {"name": "value"})
    whole = path.read_bytes()
    path.write_bytes(whole[: position % len(whole)] + bytes([whole[position] ^ 4]) + whole[position % len(whole) + 1 :])
    with pytest.raises(DamagedError):
        read_tensors(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(DamagedError):
        read_tensors(path)


def test_a_damaged_artefact_is_named_set_aside_and_made_again(tmp_path):
    store = Store(tmp_path)
    store.compute("key", lambda: {"x": torch.ones(2)}, {})
    path = store.artefact_path("key")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.warns(UserWarning, match=r"key\.safetensors does not match its checksum"):
        again = store.compute("key", lambda: {"x": torch.full((2,), 7.0)}, {})
    assert again["x"].tolist() == [7, 7]
    assert len(list((tmp_path / "damaged").iterdir())) == 1


def test_a_damaged_record_is_not_in_the_table_which_names_it_and_changes_nothing(tmp_path):
    store = Store(tmp_path)
    for seed in range(3):
        store.save_record("cell", f"key{seed}", {"dataset": "digits", "seed": seed})
    path = tmp_path / "records" / "cell" / "key1.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"key1\.json does not match its checksum\. It is left out"):
            rows = table(tmp_path)
        assert rows["seed"].tolist() == [0, 2]
    assert sorted(tmp_path.rglob("*")) == before


def damaged_record(folder: Path) -> Path:
    Store(folder).save_record("cell", "key", {"seed": 1})
    path = folder / "records" / "cell" / "key.json"
    path.write_text(path.read_text().replace("1", "2"))
    return path


@pytest.mark.parametrize("late", [False, True], ids=["made it again", "set it aside"])
def test_a_damaged_file_that_another_process_has_dealt_with_meanwhile_is_left_alone(tmp_path, monkeypatch, late):
    path, lock = damaged_record(tmp_path), Store.lock

    @contextlib.contextmanager
    def waiting(store, key):
        path.unlink() if late else store.save_record("cell", "key", {"seed": 1})
        with lock(store, key):
            yield

    monkeypatch.setattr(Store, "lock", waiting)
    assert Store(tmp_path).record("cell", "key") == (None if late else {"seed": 1})
    assert path.exists() != late
    assert not (tmp_path / "damaged").exists()


def test_a_file_that_is_moved_away_before_it_is_opened_counts_as_missing(tmp_path, monkeypatch):
    path, read = damaged_record(tmp_path), store_module.read_record
    monkeypatch.setattr(store_module, "read_record", lambda place: (path.unlink(missing_ok=True), read(place))[1])
    assert Store(tmp_path).record("cell", "key") is None


def test_many_at_once_set_a_damaged_file_aside_once(tmp_path):
    damaged_record(tmp_path)
    with pytest.warns(UserWarning, match="It was moved to") as warned, ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: Store(tmp_path).record("cell", "key"), range(8))) == {None}
    assert len(warned) == len(list((tmp_path / "damaged").iterdir())) == 1


def no_locks(number: int) -> Callable[[int, int], None]:
    def flock(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, number):
    """A file in place of a lock would outlive its holder."""
    monkeypatch.setattr(fcntl, "flock", no_locks(number))
    with (
        pytest.raises(InputError, match=rf"store {re.escape(str(tmp_path))} has no locks \(.*\).*as store_dir"),
        Store(tmp_path).lock("key"),
    ):
        pytest.fail("it was locked")


def test_who_waits_long_for_a_lock_is_told_once_and_goes_on_waiting(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store_module, "PATIENCE", 0.05)
    entered = threading.Event()

    def enter() -> None:
        with Store(tmp_path).lock("key"):
            entered.set()

    with Store(tmp_path).lock("key"):
        other = threading.Thread(target=enter)
        other.start()
        other.join(0.4)
        assert not entered.is_set()
    assert entered.wait(10)
    other.join()
    place = re.escape(str(tmp_path / "locks" / "key.lock"))
    assert re.fullmatch(rf"Waiting since \d\d:\d\d:\d\d for {place}, .*\n", capsys.readouterr().err)


def test_an_artefact_is_made_once(tmp_path):
    made = []
    for _ in range(2):
        Store(tmp_path).compute("key", lambda: made.append(1) or {"x": torch.ones(1)}, {})
    assert made == [1]


def test_keys_do_not_depend_on_the_order_of_a_description():
    assert key_of({"a": 1, "b": [2.5, "x"]}) == key_of({"b": [2.5, "x"], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    with pytest.raises(ValueError, match="not JSON compliant"):
        key_of({"a": float("nan")})


def test_a_killed_write_leaves_the_old_file_or_the_new_one(tmp_path):
    """kill -9 while a process rewrites one file over and over; whatever moment it hits, the file reads."""
    path = tmp_path / "file.safetensors"
    program = (
        "import torch, sys; from pathlib import Path; from ddlnl.store import write_tensors\n"
        f"path = Path({str(path)!r})\n"
        "for number in range(10**9):\n"
        "    write_tensors(path, {'x': torch.full((200_000,), float(number))}, {'number': number})\n"
        "    print(number, flush=True)\n"
    )
    for delay in (0.0, 0.01, 0.03):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        tensors, meta = read_tensors(path)
        assert tensors["x"].unique().tolist() == [meta["number"]]


def test_progress_counts_the_seconds_of_earlier_processes(tmp_path):
    first = Store(tmp_path).progress("loop", interval=0)
    assert first.load() is None
    first.started -= 100
    first.save(3, lambda: {"x": torch.ones(1)})
    second = Store(tmp_path).progress("loop", interval=0)
    step, state = second.load()
    assert (step, state["x"].item()) == (3, 1)
    assert 100 <= second.seconds < 110
    with second.paused():
        second_before = second.seconds
        time.sleep(0.05)
    assert second.seconds - second_before < 0.05
    assert second.aside >= 0.05
    second.save(4, lambda: {"x": torch.ones(1)})
    third = Store(tmp_path).progress("loop", interval=0)
    third.load()
    assert third.aside == second.aside
    Store(tmp_path).forget_progress("loop")
    assert second.load() is None


def test_progress_is_not_written_more_often_than_its_interval(tmp_path):
    progress = Store(tmp_path).progress("loop", interval=1000)
    progress.save(1, lambda: pytest.fail("written too early"))


def test_saving_takes_about_two_per_cent_of_the_time_of_a_loop(tmp_path, monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Store(tmp_path).progress("loop")

    def state() -> dict[str, torch.Tensor]:
        saved.append(now[0])
        now[0] += 2.0  # a large state
        return {"x": torch.ones(1)}

    for step in range(500):
        now[0] += 1.0
        progress.save(step, state)
    assert saved == [20.0, 122.0, 224.0, 326.0, 428.0]


def test_an_empty_store_gives_an_empty_table(tmp_path):
    assert table(tmp_path).empty


def test_records_are_plain_json_with_a_checksum(tmp_path):
    Store(tmp_path).save_record("cell", "key", {"accuracy_last": 0.5})
    whole = json.loads((tmp_path / "records" / "cell" / "key.json").read_text())
    assert set(whole) == {"format", "digest", "body"}


def test_the_table_of_an_empty_store_has_the_columns_that_every_table_has(tmp_path):
    names = {"dataset", "noise", "method", "ipc", "seed", "profile", "seconds"}
    names |= {f"accuracy_{rule}" for rule in ("last", "validation", "best_on_test")}
    assert names <= set(table(tmp_path).columns)


def test_equal_tensors_and_descriptions_give_equal_bytes(tmp_path):
    """The library writes the keys of a header in an order that changes from one write to the next."""
    for number in range(8):
        write_tensors(tmp_path / str(number), TENSORS, {"words": ["ü", 1, None], "name": "value"})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
