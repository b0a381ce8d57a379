"""Signals: the first is noted, the second ends the process."""

import signal
import subprocess
import sys

from conftest import ROOT

from reid.signals import signals_noted


def test_second_signal_ends_at_once():
    code = (
        "import os, signal; from reid.signals import signals_noted\n"
        "with signals_noted() as got:\n    os.kill(os.getpid(), signal.SIGINT); assert got == [signal.SIGINT]\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "KeyboardInterrupt" in done.stderr and "went on" not in done.stdout


def test_signals_outside_the_main_thread_are_left_alone():
    import threading

    seen = []

    def work():
        with signals_noted() as got:
            seen.append(got)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[]] and signal.getsignal(signal.SIGINT) is before
