"""A real headless Chromium, driven through its DevTools protocol.

The protocol goes over two pipes (``--remote-debugging-pipe``), which needs no port and nothing
but the standard library: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_S

#: Seconds between two evaluations of the expression that a test waits for.
_LOOK_EVERY_S = 0.1

_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # the pages are ours, and root or a container cannot have a sandbox
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-background-networking",  # so that the page makes every request
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
)


def chromium_program() -> str | None:
    """The path of Chromium; None where it is not installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for found in map(shutil.which, names) if found), None)


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A running browser, with its profile and its log in a folder."""
    to_browser, our_output = _pipe()
    our_input, from_browser = _pipe()
    program = chromium_program()
    assert program is not None, "tests that need it have the mark browser"
    pid = os.posix_spawn(
        program,
        [program, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, to_browser, 3),
            (os.POSIX_SPAWN_DUP2, from_browser, 4),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, folder / "chromium.log", os.O_WRONLY | os.O_CREAT, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setpgroup=0,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(our_output, our_input)
    finally:
        os.close(our_output)
        os.close(our_input)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _pipe() -> tuple[int, int]:
    """The two ends of a pipe, numbered 10 or more: in the browser, 3 and 4 are overwritten."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


class Browser:
    """Opens pages; several can be open at once."""

    def __init__(self, output: int, source: int) -> None:
        self._output, self._source = output, source
        self._numbers = itertools.count(1)
        self._read = b""
        self._pages: dict[str, Page] = {}

    def open(self, url: str, *, width: int = 1280, height: int = 900) -> Page:
        """The page once it has loaded, in a window of that many CSS pixels."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(self, target, attached["sessionId"])
        self._pages[page.session] = page
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        failed = page.call("Page.navigate", url=url).get("errorText")
        assert not failed, f"{url}: {failed}"
        self._until(lambda: page.has_loaded, f"{url} has loaded")
        return page

    def call(self, method: str, *, session: str | None = None, **params: object) -> dict[str, Any]:
        """The answer to one command of the protocol."""
        number = next(self._numbers)
        message: dict[str, object] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._output, json.dumps(message).encode() + b"\0")
        answer: dict[str, Any] = {}

        def has_come() -> bool:
            return bool(answer)

        def take(received: dict[str, Any]) -> None:
            if received.get("id") == number:
                answer.update(received)

        self._until(has_come, f"{method} is answered", take)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def forget(self, page: Page) -> None:
        """Close a page."""
        self.call("Target.closeTarget", targetId=page.target)
        del self._pages[page.session]

    def _until(
        self,
        is_done: Callable[[], bool],
        what: str,
        take: Callable[[dict[str, Any]], None] = lambda _message: None,
    ) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_done():
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"waited {PATIENCE_S:g} s in vain until {what}"
            for message in self._messages(left_s):
                take(message)
                if message.get("sessionId") in self._pages:
                    self._pages[message["sessionId"]].note(message)

    def _messages(self, timeout_s: float) -> list[dict[str, Any]]:
        """The messages since the last call; waits for one if there are none."""
        ready, _, _ = select.select([self._source], [], [], timeout_s)
        if ready:
            some = os.read(self._source, 1 << 20)
            assert some, "Chromium has ended"
            self._read += some
        *whole, self._read = self._read.split(b"\0")
        return [json.loads(message) for message in whole]


@dataclass(slots=True)
class Page:
    """One page.

    Attributes:
        errors: Errors of the console, exceptions, and failed requests.
        requested: Every URL that the page requested, its own first; ``data:`` URLs do not count.
    """

    browser: Browser
    target: str
    session: str
    has_loaded: bool = False
    errors: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """The answer of this page to one command of the protocol."""
        return self.browser.call(method, session=self.session, **params)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """The value of a JavaScript expression as soon as the value is truthy."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}\n{self.text}"
            time.sleep(_LOOK_EVERY_S)
        return value

    @property
    def text(self) -> str:
        """The text that a reader can see."""
        return str(self.evaluate("document.body.innerText"))

    @property
    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        root = "document.documentElement"
        return int(self.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))

    def resize(self, width: int, height: int) -> None:
        """Give the page a window of that many CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """A PNG of the window, or of the whole page."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def close(self) -> None:
        """Close the page."""
        self.browser.forget(self)

    def note(self, message: Mapping[str, Any]) -> None:
        """Record an event of the page."""
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self.has_loaded = True
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith("data:"):
                    self.requested.append(url)
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                described = details.get("exception", {}).get("description")
                self.errors.append(described or details["text"])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                values = (each.get("value", each.get("description")) for each in params["args"])
                self.errors.append(" ".join(map(str, values)))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                entry = params["entry"]
                self.errors.append(f"{entry['text']} {entry.get('url', '')}".strip())
