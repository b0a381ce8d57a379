"""Debian's Chromium, headless, spoken to by the DevTools protocol over two pipes: no further packages."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from pathlib import Path


class Browser:
    """One page at a time. `errors` collects all that the page complains about: exceptions, console errors, blocked
    resources. `requests` collects what it asks for besides itself."""

    def __init__(self, width: int = 1280, height: int = 900):
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            raise FileNotFoundError("chromium")
        self.profile = tempfile.mkdtemp()
        command_in, self.commands = os.pipe()
        self.answers, answers_out = os.pipe()

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
                 "--no-first-run", "--hide-scrollbars", f"--user-data-dir={self.profile}"]  # fmt: skip
        pipes = f'exec "$@" 3<&{command_in} 4>&{answers_out}'  # Chromium reads from descriptor 3 and writes to 4
        self.process = subprocess.Popen(["bash", "-c", pipes, "bash", program, *flags], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        pass_fds=(command_in, answers_out))  # fmt: skip
        os.close(command_in)
        os.close(answers_out)
        self.number, self.buffer, self.session = 0, b"", None
        self.errors, self.requests, self.events = [], [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.size(width, height)

    def call(self, method: str, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def receive(self) -> dict:
        while b"\0" not in self.buffer:
            part = os.read(self.answers, 1 << 20)
            assert part, "chromium ended"
            self.buffer += part
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"])
        elif (method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning")) or (
            method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert")
        ):
            self.errors.append(params)
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self.events.append(method)
        return message

    def open(self, path: Path, address: str = "") -> float:
        """Loads a file, and returns the seconds until its scripts have run."""
        self.errors, self.requests, self.events = [], [], []
        started = time.perf_counter()
        self.call("Page.navigate", url="about:blank")
        while not self.events:
            self.receive()
        self.events, self.requests, started = [], [], time.perf_counter()
        self.call("Page.navigate", url=path.resolve().as_uri() + address)
        while not self.events:
            self.receive()
        return time.perf_counter() - started

    def run(self, script: str):
        """The value of a JavaScript expression, promises awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, **more) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, **more)

    def size(self, width: int, height: int, phone: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self.session = None
        os.write(self.commands, json.dumps({"id": self.number + 1, "method": "Browser.close"}).encode() + b"\0")
        self.process.wait(20)
        os.close(self.commands)
        os.close(self.answers)
        shutil.rmtree(self.profile, ignore_errors=True)
