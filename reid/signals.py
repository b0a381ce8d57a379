"""Signals that end a loop after its current step."""

import logging
import signal
import threading
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def signals_noted():
    """Yields a list to which SIGINT and SIGTERM are added, for a loop to end after its step; a second one ends at
    once. Outside the main thread nothing is noted, as Python allows it there only."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame) -> None:
        received.append(number)
        logger.warning("stopping after this step; the same signal again stops at once")
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
