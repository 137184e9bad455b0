"""A headless Chromium for tests, driven over a pipe by its own protocol (Chrome DevTools Protocol): no package is needed.

    with Chromium(find_chromium(), folder) as browser:
        page = browser.open(path, width=390)
        page.evaluate("document.title")
"""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--remote-debugging-pipe",
         "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--force-device-scale-factor=1")
HINTS = ("Canvas2D: Multiple readback", "GPU stall due to ReadPixels")      # of the browser, on speed
SECONDS = 300.0     # for one answer, on a busy machine
# The browser reads commands from file descriptor 3 and writes answers to 4.
START = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"


def find_chromium() -> str | None:
    """Return the program of an installed Chromium or Chrome; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Chromium:
    """One browser process, ended on leaving."""

    def __init__(self, program: str, folder: Path):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 50) for end in (commands, answers)]      # out of the way of 3 and 4
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, theirs), program, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=theirs, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in (commands, answers, *theirs):
            os.close(end)
        self._buffer, self._numbers = b"", count(1)
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False, media: str = "") -> "Page":
        """Load a file in a tab of its own and return it when all of it is there."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.ask(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])
        page.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        page.ask("Page.navigate", url=path.resolve().as_uri())
        self.wait_for(lambda: page.said("Page.loadEventFired"))
        return page

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Give one command and return its answer; what else is said meanwhile is kept in `events`."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while (answer := self._next(end)).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def wait_for(self, condition: Any) -> None:
        """Read what the browser says until a condition holds."""
        end = time.monotonic() + SECONDS
        while not condition():
            self.events.append(self._next(end))

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            content = os.read(self._answers, 1 << 20) if ready else b""
            assert content, "the browser has ended" if ready else f"the browser said nothing for {SECONDS:g} s"
            self._buffer += content
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, session: str):
        self.browser, self.session = browser, session

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.ask(method, self.session, **parameters)

    def said(self, *methods: str) -> list[dict[str, Any]]:
        """Return the events of these names that this tab has told of."""
        return [event["params"] for event in self.browser.events
                if event.get("sessionId") == self.session and event.get("method") in methods]

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript in the page, awaited where it is a promise."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def settle(self) -> None:
        """Wait until what is to be drawn has been drawn."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))))")

    def place_of(self, selector: str) -> list[float]:
        """Scroll to an element and return where it is in the window: left, top, right, bottom."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        self.settle()
        return self.evaluate(f"(() => {{ const b = {found}.getBoundingClientRect(); "
                             "return [b.left, b.top, b.right, b.bottom]; })()")

    def picture(self, selector: str | None = None) -> Image.Image:
        """Return what the window shows, scrolled to an element and cut to it if one is named."""
        place = None if selector is None else self.place_of(selector)   # a clip beyond the window would lay the page out anew
        answer = self.ask("Page.captureScreenshot", format="png")
        image = Image.open(io.BytesIO(base64.b64decode(answer["data"]))).convert("RGB")
        return image.crop([round(edge) for edge in place]) if place else image

    def drag(self, selector: str, right: int, down: int) -> None:
        """Press the mouse in the middle of an element, move it, and let it go."""
        left, top, end, bottom = self.place_of(selector)
        x, y = (left + end) / 2, (top + bottom) / 2
        places = [("mouseMoved", 0), ("mousePressed", 0), ("mouseMoved", 0.5), ("mouseMoved", 1), ("mouseReleased", 1)]
        for kind, part in places:
            self.ask("Input.dispatchMouseEvent", type=kind, x=x + part * right, y=y + part * down, button="left", clickCount=1,
                     buttons=0 if kind == "mouseReleased" or not part else 1)
            self.settle()

    def complaints(self) -> list[str]:
        """Return every error and warning of the console, and every exception that nothing caught, less hints on speed."""
        found = [str(told["exceptionDetails"]) for told in self.said("Runtime.exceptionThrown")]
        found += [str(told["args"]) for told in self.said("Runtime.consoleAPICalled")
                  if told["type"] in ("error", "warning", "assert")]
        found += [told["entry"]["text"] for told in self.said("Log.entryAdded") if told["entry"]["level"] in ("error", "warning")]
        return [text for text in found if not any(hint in text for hint in HINTS)]

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for, less those that hold their content."""
        asked = [told["request"]["url"] for told in self.said("Network.requestWillBeSent")]
        return [url for url in asked if not url.startswith(("data:", "blob:"))]
