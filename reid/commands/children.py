"""Commands of this project as child processes."""

import os
import subprocess
import sys
import threading
from io import BufferedReader
from typing import cast

from reid.signals import child_options, stop_child


class Children:
    """Runs commands in child processes, from several threads at once, and stops them together."""

    def __init__(self, quiet: bool, threads: int = 0):
        """quiet: do not show the children's messages. threads: CPU threads of each; 0 leaves the default."""
        self.quiet = quiet
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else None
        self.stopped = False
        self.running: set[subprocess.Popen] = set()
        self.lock = threading.Lock()

    def run(self, argv: list[str]) -> tuple[int, str]:
        """(exit code, last line of its messages) of `python -m reid` with these arguments.

        After `stop` no command starts; the result is then (0, "").
        """
        command = [sys.executable, "-m", "reid", *argv]
        with self.lock:  # so that `stop` finds every child
            if self.stopped:
                return 0, ""
            options = child_options() | {"env": self.environment}
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
            self.running.add(child)
        with child:
            message = self.read_messages(child)
            code = child.wait()
        with self.lock:
            self.running.discard(child)
        return code, message

    def read_messages(self, child: subprocess.Popen) -> str:
        """Reads the messages of the child, shows them unless quiet, and returns the last line."""
        end = b""
        messages = cast(BufferedReader, child.stderr)
        while chunk := messages.read1(4096):
            end = (end + chunk)[-2000:]
            if not self.quiet:
                sys.stderr.write(chunk.decode(errors="replace"))
                sys.stderr.flush()
        lines = end.decode(errors="replace").replace("\r", "\n").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def stop(self) -> None:
        """Asks every child to save its work and end."""
        with self.lock:
            self.stopped = True
            for child in self.running:
                stop_child(child)
