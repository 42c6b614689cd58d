"""A page in headless Chromium, over its debugging protocol: what it logs, what it asks the network for, how it fits.

`python tests/browser.py FOLDER` looks at every page of a folder.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import websocket

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--remote-allow-origins=*")
FLAGS += ("--remote-debugging-port=0", "--hide-scrollbars")
PATIENCE = 120  # seconds
LOOK = """({
  wide: document.documentElement.scrollWidth, shown: window.innerWidth,
  nameless: [...document.images].filter(image => !image.alt.trim()).length,
  broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
  images: document.images.length,
  page: getComputedStyle(document.body).backgroundColor,
})"""


class Page:
    """One tab. `complaints` are messages of the console and refusals of the page's policy; `requests` are addresses."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address, timeout=PATIENCE)
        self.count, self.complaints, self.requests, self.loaded = 0, [], [], False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict:
        """Send a command and wait for its answer."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = self._next()
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]

    def _next(self) -> dict:
        message = json.loads(self.socket.recv())
        method, about = message.get("method"), message.get("params", {})
        if method in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(about))
        elif method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True
        return message

    def open(self, path: Path, width: int, scheme: str) -> dict:
        """Show a file at a width of so many pixels, in light or dark, and say what `LOOK` finds."""
        self.complaints, self.requests, self.loaded = [], [], False
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self._next()
        return self.call("Runtime.evaluate", expression=LOOK, returnByValue=True)["result"]["value"]


def faults(tab: Page, path: Path) -> list[str]:
    """What is wrong with a page that must work offline, at 400 and 1400 pixels, in light and dark; [] for nothing."""
    found, colours = [], set()
    for width in (400, 1400):
        for scheme in ("light", "dark"):
            seen = tab.open(path, width, scheme)
            outside = [url for url in tab.requests if not url.startswith(("data:", path.resolve().as_uri()))]
            wrong = {
                "is wider than the window": seen["wide"] > seen["shown"] or seen["shown"] != width,
                "has an image without alternative text": seen["nameless"],
                "has an image that is not shown": seen["broken"],
                f"complains: {tab.complaints}": tab.complaints,
                f"asks for {outside}": outside,
            }
            found += [f"{path.name} at {width} pixels in {scheme} {what}" for what, true in wrong.items() if true]
            colours.add(seen["page"])
    return found if len(colours) == 2 else [*found, f"{path.name} looks the same in light and dark"]


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A browser whose profile is an empty folder; it ends with the block."""
    process = subprocess.Popen(
        [BROWSER, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        tab = _first_tab(_port(folder, process))
        with contextlib.closing(tab.socket):
            yield tab
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _port(folder: Path, process: subprocess.Popen) -> int:
    written, end = folder / "DevToolsActivePort", time.monotonic() + PATIENCE
    while not (written.is_file() and written.read_text().strip()):
        assert process.poll() is None, "the browser ended before it was ready"
        assert time.monotonic() < end, "the browser did not start in time"
        time.sleep(0.1)
    return int(written.read_text().split()[0])


def _first_tab(port: int) -> Page:
    with urlopen(f"http://127.0.0.1:{port}/json", timeout=PATIENCE) as answer:
        tabs = json.load(answer)
    return Page(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))


def main(folder: str) -> None:
    """Look at every page of a folder, and end with the exit code 1 where something is wrong."""
    if BROWSER is None:
        sys.exit("No Chromium is installed; install chromium or google-chrome to look at pages.")
    pages = sorted(Path(folder).glob("*.html"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, chromium(Path(profile)) as tab:
        found = [fault for page in pages for fault in faults(tab, page)]
    print("\n".join(found) or f"{len(pages)} pages: nothing is wrong.")
    sys.exit(bool(found) or not pages)


if __name__ == "__main__":
    main(sys.argv[1])
