"""A headless Chromium that tests look at pages with, over the DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)


class Browser:
    """A page of a headless Chromium.

    Args:
        folder: for its profile.
        width, height: of the window, in pixels.
    """

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        import websocket

        assert CHROMIUM is not None
        profile = folder / "profile"
        self._process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless=new",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--remote-debugging-port=0",
                "--remote-allow-origins=*",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        written = profile / "DevToolsActivePort"
        until(lambda: written.exists() and len(written.read_text().split()) == 2)
        port = written.read_text().split()[0]
        pages = json.loads(_get(f"http://127.0.0.1:{port}/json"))
        address = next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page")
        self._socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self._number = 0
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, address: str, *words: str, seconds: float = 60.0) -> str:
        """Open a page and wait until its text has all these words; the text."""
        self.call("Page.navigate", url=address)
        until(lambda: all(w in self.text() for w in words), seconds, self.text)
        return self.text()

    def text(self) -> str:
        """What a reader sees."""
        return self.run("document.body ? document.body.innerText : ''") or ""

    def overflow(self) -> int:
        """By how many pixels the page, or a part of it that cannot be scrolled, is too wide."""
        return self.run(
            "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
            " - document.documentElement.clientWidth"
        )

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Write what is seen, or all of the page, as PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))


def until(condition: Any, seconds: float = 60.0, said: Any = lambda: "") -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not happen within {seconds:.0f} s: {said()}"
        time.sleep(0.1)


def _get(address: str) -> str:
    from urllib.request import urlopen

    with urlopen(address, timeout=30) as answer:
        return answer.read().decode()
