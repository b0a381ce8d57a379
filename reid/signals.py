"""Stop signals: a loop ends after its current step, and child processes are stopped the same way."""

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

# Ctrl-C, the usual request to stop, and Windows' Ctrl-Break
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Calls `handler` for stop signals in the context. Does nothing outside the main thread."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            with suppress(ValueError, OSError):  # not supported on this system
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Yields a list to which received stop signals are added, so that a loop can end after its step.

    The same signal a second time ends the process at once. In other threads the list stays empty.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        logger.warning("stopping after this step; send the signal again to stop at once")
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    with handled(note):
        yield received


def child_options() -> dict[str, Any]:
    """Arguments of subprocess.Popen so that only `stop_child`, not the terminal's Ctrl-C, stops a child."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def stop_child(child: subprocess.Popen) -> None:
    """Asks a child made with `child_options` to stop after its step."""
    if sys.platform == "win32":
        child.send_signal(signal.CTRL_BREAK_EVENT)
    else:
        child.terminate()
