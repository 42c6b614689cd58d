"""Notebooks in a real JupyterLab: each is opened in headless Chromium and run from top to bottom.

`python tests/lab.py FOLDER` runs copies of every notebook of a folder; those of the gallery find their cells in the
store.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from browser import BROWSER, PATIENCE, Page, chromium
from executed import CELL

RUN = """(async () => {
  const until = async (found) => {
    for (const end = Date.now() + PATIENCE; !found();) {
      if (Date.now() > end) throw new Error(`waited in vain for ${found}`);
      await new Promise(done => setTimeout(done, 200));
    }
    return found();
  };
  const app = await until(() => window.jupyterapp);
  await app.restored;
  const panel = await until(() => [...app.shell.widgets('main')].find(one => one.context?.path === NAME));
  await panel.context.ready;
  await panel.sessionContext.ready;
  app.shell.activateById(panel.id);
  await app.commands.execute('notebook:run-all-cells');
  await until(() => panel.sessionContext.session?.kernel?.status === 'idle');
  await new Promise(done => setTimeout(done, 1000));
  const code = panel.context.model.toJSON().cells.filter(cell => cell.cell_type === 'code');
  return {
    cells: code.length,
    skipped: code.filter(cell => cell.execution_count === null).length,
    errors: code.flatMap(cell => cell.outputs.filter(one => one.output_type === 'error').map(one => one.evalue)),
    images: panel.node.querySelectorAll('.jp-OutputArea img').length,
    lists: panel.node.querySelectorAll('.jupyter-widgets select').length,
  };
})()"""


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves a folder to this machine; it ends with the block."""
    runtime = folder / ".runtime"
    options = [
        "--no-browser",
        "--allow-root",
        "--expose-app-in-browser",
        "--ServerApp.port=0",
        "--IdentityProvider.token=",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"JUPYTER_RUNTIME_DIR": str(runtime), "JUPYTER_PREFER_ENV_PATH": "1"},
    )
    try:
        end = time.monotonic() + PATIENCE
        while not (found := list(runtime.glob("jpserver-*.json"))):
            assert process.poll() is None, "JupyterLab ended before it was ready"
            assert time.monotonic() < end, "JupyterLab did not start in time"
            time.sleep(0.2)
        yield json.loads(found[0].read_text())["url"]
    finally:
        process.terminate()
        process.wait(PATIENCE)


def run(tab: Page, address: str, name: str) -> dict:
    """Open a notebook in JupyterLab and run all its cells; what `RUN` finds afterwards."""
    tab.socket.settimeout(CELL)
    tab.call("Emulation.setDeviceMetricsOverride", width=1400, height=900, deviceScaleFactor=1, mobile=False)
    tab.call("Page.navigate", url=f"{address}lab/tree/{quote(name)}?reset")
    program = RUN.replace("NAME", json.dumps(name)).replace("PATIENCE", str(1000 * PATIENCE))
    answer = tab.call("Runtime.evaluate", expression=program, awaitPromise=True, returnByValue=True)
    tab.socket.settimeout(PATIENCE)
    assert "exceptionDetails" not in answer, answer
    return answer["result"]["value"]


def faults(name: str, seen: dict) -> list[str]:
    """What is wrong with a notebook that ran: [] for nothing."""
    wrong = {
        f"has cells that did not run: {seen['skipped']} of {seen['cells']}": seen["skipped"] or not seen["cells"],
        f"has errors: {seen['errors']}": seen["errors"],
        "shows no figure": not seen["images"],
        "shows no list to choose from": name == "explore.ipynb" and not seen["lists"],
    }
    return [f"{name} {what}" for what, true in wrong.items() if true]


def main(folder: str) -> None:
    """Run every notebook of a folder, and end with the exit code 1 where something is wrong."""
    if BROWSER is None:
        sys.exit("No Chromium is installed; install chromium or google-chrome to run notebooks in JupyterLab.")
    names, found = sorted(path.name for path in Path(folder).glob("*.ipynb")), []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        for name in names:
            shutil.copy(Path(folder) / name, place)
        with jupyterlab(Path(place)) as address, chromium(Path(place) / ".profile") as tab:
            for name in names:
                began = time.monotonic()
                found += faults(name, run(tab, address, name))
                print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    print("\n".join(found) or f"{len(names)} notebooks ran from top to bottom in JupyterLab: nothing is wrong.")
    sys.exit(bool(found) or not names)


if __name__ == "__main__":
    main(sys.argv[1])
