"""Without a network everything works but a download, which says so in one sentence; the whole suite runs like this."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

PROMISE = "without a network everything but a download works"
ROOT = Path(__file__).parents[2]
NAMED = "198.51.100.7"  # reserved for documentation: nobody is there


def offline(program: str, folder: Path, unshared: bool = False) -> subprocess.CompletedProcess[str]:
    """A program in a folder of its own; `unshared`: in a network that has no device but loopback."""
    paths = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT), str(ROOT / "tests")])
    settings = {"PYTHONPATH": paths, "DDLNL_DATA": str(folder / "data"), "DDLNL_STORE": str(folder / "store")}
    settings |= {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", "DDLNL_EXTENSION": "off"}
    settings |= {"CUDA_VISIBLE_DEVICES": ""}
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"] if unshared else []
    return subprocess.run(
        [*alone, sys.executable, "-c", program], cwd=folder, env=os.environ | settings, capture_output=True, text=True
    )


def may_unshare() -> bool:
    """Whether a network of one's own can be made here, in which loopback can be switched on."""
    command = ["unshare", "--net", "ip", "link", "set", "lo", "up"]
    return all(map(shutil.which, ("unshare", "ip"))) and subprocess.run(command, capture_output=True).returncode == 0


EVERYTHING = f"""
import small
from executed import execute
from ddlnl.__main__ import main
from ddlnl.profiles import PROFILES

PROFILES["demo"] = small.profile()
main("study --methods random --rates 0 0.5 --ipcs 1 --seeds 1 --device cpu".split())
main(["doctor"])
execute({str(ROOT / "notebooks" / "explore.ipynb")!r}, "out.ipynb")
main("export out.ipynb out.html".split())
"""


def test_a_study_doctor_a_notebook_and_its_page_need_no_network(tmp_path, tally):
    (tmp_path / "data").mkdir()
    done = offline(EVERYTHING, tmp_path, unshared=may_unshare())
    assert done.returncode == 0, done.stderr
    assert "symmetric:0.5" in done.stdout
    assert "Nothing is wrong." in done.stdout
    assert "symmetric:0.5" in (tmp_path / "out.html").read_text()
    assert "run without a network" not in done.stdout + done.stderr
    tally(PROMISE, 4, 4)


def test_a_download_without_a_network_is_one_sentence_that_says_what_to_bring(tmp_path, tally):
    done = offline("from ddlnl.__main__ import main; main(['data', 'fetch', 'cifar10'])", tmp_path)
    assert done.returncode == 2
    assert "its download through torchvision failed (" in done.stderr
    assert "bring cifar10.npz or the published cifar-10-python.tar.gz to" in done.stderr
    assert "Traceback" not in done.stderr
    tally(PROMISE)


def test_no_test_can_reach_the_network_but_all_can_reach_this_machine(tally):
    with pytest.raises(OSError, match="run without a network"), socket.socket() as one:
        one.connect((NAMED, 80))
    with pytest.raises(OSError, match="run without a network"), socket.socket(type=socket.SOCK_DGRAM) as one:
        one.sendto(b"x", (NAMED, 53))
    with pytest.raises(socket.gaierror, match="run without a network"):
        socket.create_connection(("example.org", 80))
    with pytest.raises(urllib.error.URLError, match="run without a network"):
        urllib.request.urlopen("http://example.org")
    program = f"import socket; socket.create_connection(('{NAMED}', 80))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "run without a network" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        assert one.getpeername() == server.getsockname()
    tally(PROMISE)
