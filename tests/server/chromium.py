"""A headless Chromium driven over its debugging pipe (one JSON message after the other, each ended by a zero byte)."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tab:
    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest, self._calls, self._session = write, read, b"", 0, ""
        self.complaints: list[str] = []
        """Uncaught errors, and what the page's policy refused."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        message: dict[str, Any] = {"id": self._calls, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._calls:
            params = answer.get("params", {})
            if answer.get("method") == "Runtime.exceptionThrown" or params.get("entry", {}).get("level") == "error":
                self.complaints.append(json.dumps(params))
        assert "result" in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], 30)[0], "Chromium has not answered for 30 s"
            self._rest += os.read(self._read, 1 << 20) or self._gone()
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _gone(self) -> bytes:
        raise AssertionError("Chromium has ended")

    def run(self, script: str) -> Any:
        """Evaluate JavaScript and return its value, once it has one."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 10) -> Any:
        """Wait until JavaScript says something true, and return that."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"not within {seconds:g} s: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.02)
        return value

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def press_enter(self, **more: Any) -> None:
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"} | more
        self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def photograph(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def open_chromium(profile: Path) -> Iterator[Tab]:
    assert PATH
    (command_read, command_write), (answer_read, answer_write) = os.pipe(), os.pipe()
    high = [os.dup(fd) for fd in (command_read, answer_write)]  # 3 and 4 are where Chromium expects its pipe

    def connect() -> None:
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    command = [PATH, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--lang=en-US"]
    process = subprocess.Popen(
        command, preexec_fn=connect, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield Tab(command_write, answer_read)
    finally:
        process.terminate()
        process.wait(20)
        for fd in (command_read, command_write, answer_read, answer_write, *high):
            os.close(fd)
