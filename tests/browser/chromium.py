"""A headless Chromium, driven over a pipe by its own debugging protocol."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FOUND = next((path for name in NAMES if (path := shutil.which(name))), None)
# Gives a page `legibility.faint()` and `legibility.wide()`: what of it cannot be read, and what is too wide.
LEGIBILITY = (Path(__file__).parent / "legibility.js").read_text(encoding="utf-8")
# The browser reads commands from file descriptor 3 and answers on 4.
LAUNCHER = """\
import fcntl, os, sys
pair = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 50) for each in sys.argv[1:3]]
os.dup2(pair[0], 3), os.dup2(pair[1], 4)
os.closerange(5, 100)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60.0
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)


@dataclass
class Page:
    """A page in the browser: what it asked for, and what went wrong on it."""

    browser: Browser
    session: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers."""
        return self.browser.call(method, self.session, **parameters)

    def open(self, url: str, scheme: str = "light", size: tuple[int, int] = (1280, 900)) -> None:
        """Load a page, as someone who prefers light or dark sees it."""
        self.requests.clear()
        self.errors.clear()
        self.prefer(scheme)
        self.resize(size)
        self.call("Page.navigate", url=url)
        self.browser.until(lambda event: event.get("method") == "Page.loadEventFired")

    def prefer(self, scheme: str) -> None:
        """See the page as someone who prefers light or dark."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},  # scrolling is over at once
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        # Scripts of the page hear of it before the next frame.
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")

    def resize(self, size: tuple[int, int]) -> None:
        """See the page in a window so many pixels wide and high."""
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"].get("description", "an exception"))
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def click(self, selector: str) -> None:
        """Click the middle of the first element that a selector finds."""
        box = self.run(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'center'}); const box = found.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)


class Browser:
    """The browser's process and its answers."""

    def __init__(self, profile: str) -> None:
        assert FOUND is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", LAUNCHER, str(theirs_in), str(theirs_out)),
                *(FOUND, *OPTIONS, f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers = itertools.count(1)
        self._rest = b""
        self._pages: dict[str, Page] = {}

    def page(self) -> Page:
        """A new page, which is watched."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        return page

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The answer to a command.

        Raises:
            AssertionError: the browser refuses it.
        """
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answer = self.until(lambda event: event.get("id") == number)
        assert "error" not in answer, f"{method}: {answer.get('error')}"
        return answer["result"]

    def until(self, wanted: Any) -> dict[str, Any]:
        """The first message that is wanted; others are noted."""
        deadline = time.monotonic() + PATIENCE
        while True:
            message = self._next(deadline)
            self._note(message)
            if wanted(message):
                return message

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self._in, 1 << 16)
            assert read, "the browser has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, message: dict[str, Any]) -> None:
        page = self._pages.get(message.get("sessionId", ""))
        if page is None:
            return
        method, told = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            page.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            page.errors.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            page.errors.append(str(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            page.errors.append(told["entry"]["text"])

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)


@contextmanager
def browsing() -> Iterator[Page]:
    """A page of a browser of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            yield browser.page()
        finally:
            browser.close()
