"""A headless Chromium, driven over its debugging pipe, for pages that a test clicks on."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page of it; use it as a context manager.

    Attributes:
        complaints: What the page's console said as an error, and what it threw.
        asked: The addresses that the page asked for.
    """

    def __init__(self, profile: Path, width: int = 1280, height: int = 1000) -> None:
        mine, its = os.pipe(), os.pipe()
        self._out, self._in = mine[1], its[0]

        def as_3_and_4() -> None:
            # First out of the way: one of them may be 3 or 4 itself.
            there, back = os.dup(mine[0]), os.dup(its[1])
            while there in (3, 4):
                there = os.dup(there)
            while back in (3, 4):
                back = os.dup(back)
            os.dup2(there, 3)
            os.dup2(back, 4)

        command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--remote-debugging-pipe"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, stdout=quiet, stderr=quiet, preexec_fn=as_3_and_4, close_fds=False, start_new_session=True
        )
        os.close(mine[0])
        os.close(its[1])
        self._rest, self._number, self.complaints, self.asked = b"", 0, [], []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """A command of the DevTools protocol on the page."""
        return self._call(method, self._session, **values)

    def _call(self, method: str, session: str | None = None, **values: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        message |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                read = os.read(self._in, 1 << 16)
                assert read, "the browser is gone"
                self._rest += read
            line, _, self._rest = self._rest.partition(b"\0")
            told = json.loads(line)
            if told.get("id") == self._number:
                assert "error" not in told, (method, told["error"])
                return told["result"]
            self._hear(told.get("method"), told.get("params", {}))

    def _hear(self, method: str | None, told: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"])[:500])
        if method == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.complaints.append(json.dumps(told["args"])[:500])
        if method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        if method == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])

    def run(self, script: str) -> Any:
        """The value of a script in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        """Wait until a script has a true value."""
        end = time.monotonic() + seconds
        while not self.run(f"!!({script})"):
            assert time.monotonic() < end, f"{script} stays false: {self.run('document.body.innerText')}"
            time.sleep(0.1)

    def give_files(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in an input of the page."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve()) for path in files])

    def screenshot(self, path: Path) -> None:
        """Save what the page looks like, in its whole height."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))
