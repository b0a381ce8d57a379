"""The command line: flags in, calls, printed lines."""

import logging
import os
import sys
from collections.abc import Callable

from tqdm import tqdm

from reid.errors import CheckFailed, InputError, Interrupted


class Screen(logging.Handler):
    """Log records as lines above a progress bar: infos on stdout, warnings on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.levelno >= logging.WARNING:
            tqdm.write(f"{record.levelname.lower()}: {line}", file=sys.stderr)
        else:
            tqdm.write(line, file=sys.stdout)


def show_log() -> None:
    """Shows what the library logs. Called once at the start of a command, in every process of it."""
    logger = logging.getLogger("reid")
    if not any(isinstance(handler, Screen) for handler in logger.handlers):
        logger.addHandler(Screen())
    logger.setLevel(logging.INFO)


def reported(work: Callable[[], int], debug: bool) -> int:
    """Runs a command and returns its exit code; known errors become one message instead of a traceback.

    The code is what work() returns; 1 for CheckFailed; 2 for InputError and for what the system refuses (a full disk,
    a folder without permission); 130 when stopped; 141 when the reader of the output has gone. With `debug` errors
    are raised.
    """
    try:
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
        return 141
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (InputError, OSError, CheckFailed, Interrupted) as e:
        if debug:
            raise
        print(e if isinstance(e, Interrupted) else f"error: {e}", file=sys.stderr)
        return {Interrupted: 130, CheckFailed: 1}.get(type(e), 2)
