"""Headless Chromium, controlled through the DevTools protocol over two pipes, without further packages."""

import json
import os
import shutil
import subprocess
import tempfile
from base64 import b64decode
from pathlib import Path


class Browser:
    """One page at a time. Raises FileNotFoundError where Chromium is not installed.

    errors: exceptions, console errors and warnings, and blocked resources of the page. requests: addresses that it
    loaded, without data URLs.
    """

    def __init__(self, width: int = 1280, height: int = 900):
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None or os.name == "nt":  # the pipes below need a POSIX shell
            raise FileNotFoundError("chromium")
        self.profile = tempfile.mkdtemp()
        command_in, self.commands = os.pipe()
        self.answers, answers_out = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={self.profile}"]
        # Chromium reads from descriptor 3 and writes to 4
        pipes = f'exec "$@" 3<&{command_in} 4>&{answers_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", pipes, "bash", program, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(command_in, answers_out),
        )
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
        entry = params.get("entry", params)  # of Log.entryAdded; of Runtime.consoleAPICalled
        level = entry.get("level", entry.get("type"))
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"])
        elif method in ("Log.entryAdded", "Runtime.consoleAPICalled"):
            if level in ("error", "warning", "assert"):
                self.errors.append(params)
        elif method == "Network.requestWillBeSent":
            if not params["request"]["url"].startswith("data:"):
                self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self.events.append(method)
        return message

    def open(self, path: Path, address: str = "") -> None:
        """Loads a file and waits until its scripts have run."""
        self.load("about:blank")  # or another address of the same page would not load it again
        self.errors, self.requests = [], []
        self.load(path.resolve().as_uri() + address)

    def load(self, url: str) -> None:
        self.events = []
        self.call("Page.navigate", url=url)
        while not self.events:
            self.receive()

    def run(self, script: str):
        """The value of a JavaScript expression; a promise is awaited."""
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
