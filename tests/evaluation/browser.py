"""A real browser without a screen, spoken to in its own protocol (Chrome DevTools) over two pipes."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
)
PATIENCE_SECONDS = 60.0
# The browser reads commands at descriptor 3 and writes answers at descriptor 4.
_START = "import os, sys; os.dup2({}, 3); os.dup2({}, 4); os.execv(sys.argv[1], sys.argv[1:])"


def find_browser() -> str | None:
    """Returns a browser of this machine that can work without a screen, None where there is none."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


@dataclass
class Page:
    """One open page: what it asked for and complained of since it was opened."""

    _write: int
    _read: int
    session: str = ""
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _number: int = 0
    _loaded: int = 0
    _rest: bytes = b""

    def open(self, address: str, *, width: int = 1200, height: int = 900, scheme: str = "light") -> None:
        """Opens an address in a window of that size and waits until all is loaded and decoded."""
        self.requests.clear()
        self.complaints.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        before = self._loaded
        self.send("Page.navigate", url=address)
        end = time.monotonic() + PATIENCE_SECONDS
        while self._loaded == before:
            self._take(end)

    def ask(self, expression: str) -> Any:
        """Returns the value of an expression in the page, once it is settled."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def send(self, method: str, **parameters: Any) -> Any:
        """Returns the answer to a command; what happens meanwhile is kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = self._take(end)
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return found["result"]

    def _take(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._read, 1 << 20) if ready else b""
            assert chunk, "the browser says nothing more"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded += 1
        elif method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(said["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(said))


@contextmanager
def open_browser(binary: str, profile: Path) -> Iterator[Page]:
    """Gives an empty page of a browser with a profile of its own, and ends the browser afterwards."""
    profile.mkdir()
    command_out, command_in = os.pipe()
    answer_out, answer_in = os.pipe()
    start = [sys.executable, "-c", _START.format(command_out, answer_in), binary]
    process = subprocess.Popen(
        [*start, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(command_out, answer_in),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(command_out)
    os.close(answer_in)
    page = Page(command_in, answer_out)
    try:
        target = page.send("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            page.send(f"{domain}.enable")
        yield page
        page.session = ""
        page.send("Browser.close")
        process.wait(PATIENCE_SECONDS)
    finally:
        process.kill()
        process.wait()
        os.close(command_in)
        os.close(answer_out)
