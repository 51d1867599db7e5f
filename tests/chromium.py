"""A browser without a window, driven through the DevTools protocol over a pipe: what pages do in it can be
asked.

Standard library only. https://chromedevtools.github.io/devtools-protocol
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = (
    "headless no-sandbox disable-gpu disable-dev-shm-usage no-first-run disable-background-networking "
    "disable-component-update disable-sync disable-extensions disable-default-apps hide-scrollbars "
    "mute-audio remote-debugging-pipe"
)


class Chromium:
    """One browser; `open` gives a tab. Use it in a with statement."""

    def __init__(self, profile: Path, *, timeout_s: float = 120.0) -> None:
        self.timeout_s, self._id, self._buffer = timeout_s, 0, b""
        self._waiting: list[dict[str, Any]] = []
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser reads commands from descriptor 3 and answers on descriptor 4.
        self._process = subprocess.Popen(
            [
                *("bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash"),
                *(str(PROGRAM), *(f"--{option}" for option in OPTIONS.split())),
                *(f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)

    def open(self, page: Path, *, width: int, height: int = 900, script: str = "") -> Tab:
        """Open a file in a tab as wide as asked for, and wait until it has loaded; `script` runs before it
        does.
        """
        return Tab(self, page, width, height, script)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self.wait(lambda m: m.get("id") == message["id"])
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait(self, wanted: Any) -> dict[str, Any]:
        """Return the first wanted message of those received and those to come; others are kept."""
        for i, message in enumerate(self._waiting):
            if wanted(message):
                return self._waiting.pop(i)
        until = time.monotonic() + self.timeout_s
        while True:
            while b"\0" in self._buffer:
                text, _, self._buffer = self._buffer.partition(b"\0")
                message = json.loads(text)
                if wanted(message):
                    return message
                self._waiting.append(message)
            ready, _, _ = select.select([self._read], [], [], max(until - time.monotonic(), 0))
            if not ready:
                raise TimeoutError(f"the browser was silent for {self.timeout_s} s")
            got = os.read(self._read, 1 << 20)
            if not got:
                raise RuntimeError("the browser has gone")
            self._buffer += got

    def events(self, session: str, *methods: str) -> list[dict[str, Any]]:
        """Parameters of all events of a tab so far, of some kinds."""
        self.call("Target.getTargets")  # an answer: everything before it has arrived
        found = [m for m in self._waiting if m.get("sessionId") == session and m.get("method") in methods]
        return [{"method": m["method"], **m["params"]} for m in found]


class Tab:
    """A page in the browser."""

    def __init__(self, browser: Chromium, page: Path, width: int, height: int, script: str) -> None:
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        if script:
            self.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        self.resize(width, height)
        self.call("Page.navigate", url=page.as_uri())
        browser.wait(
            lambda m: m.get("method") == "Page.loadEventFired" and m.get("sessionId") == self.session
        )

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to this tab."""
        return self.browser.call(method, self.session, **parameters)

    def resize(self, width: int, height: int = 900) -> None:
        """Give the page another width, as a phone or a window would."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, awaited if it is a promise."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(str(done["exceptionDetails"]))
        return done["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key on whatever has the focus."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                self.call(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=key,
                    code="Space" if key == " " else key,
                    windowsVirtualKeyCode=codes[key],
                    **(
                        {"text": {"Enter": "\r", " ": " "}[key]}
                        if key in ("Enter", " ") and kind == "keyDown"
                        else {}
                    ),
                )

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        return [e["request"]["url"] for e in self.browser.events(self.session, "Network.requestWillBeSent")]

    def faults(self) -> list[str]:
        """Errors and warnings on the console, exceptions, requests that failed."""
        found = []
        for e in self.browser.events(
            self.session,
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Log.entryAdded",
            "Network.loadingFailed",
        ):
            if e["method"] == "Runtime.consoleAPICalled" and e["type"] in ("error", "warning", "assert"):
                found.append(f"console.{e['type']}: {e['args']}")
            elif e["method"] == "Runtime.exceptionThrown":
                found.append(f"exception: {e['exceptionDetails']}")
            elif e["method"] == "Log.entryAdded" and e["entry"]["level"] in ("error", "warning"):
                found.append(f"log: {e['entry']['text']} {e['entry'].get('url', '')}")
            elif e["method"] == "Network.loadingFailed":
                found.append(f"request failed: {e.get('errorText')} {e.get('blockedReason', '')}")
        return found

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """Write a PNG of what is seen, or of the whole page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def pdf(self, path: Path) -> Path:
        """Print to a PDF."""
        path.write_bytes(
            base64.b64decode(
                self.call("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)[
                    "data"
                ]
            )
        )
        return path
