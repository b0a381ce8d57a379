"""The command line: reads flags, calls the library, prints results."""

import io
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from tqdm import tqdm

from reid.config import Config
from reid.errors import CheckFailed, InputError, Interrupted


class Screen(logging.Handler):
    """Prints log records above a progress bar: infos on stdout, warnings on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.levelno >= logging.WARNING:
            tqdm.write(f"{record.levelname.lower()}: {line}", file=sys.stderr)
        else:
            tqdm.write(line, file=sys.stdout)


def show_log() -> None:
    """Prints the log records of the library. Every process of a command calls it once, at the start.

    A character that the console cannot show is printed as '?', for example on Windows.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logger = logging.getLogger("reid")
    if not any(isinstance(handler, Screen) for handler in logger.handlers):
        logger.addHandler(Screen())
    logger.setLevel(logging.INFO)


def reported(work: Callable[[], int], debug: bool) -> int:
    """Runs a command and returns its exit code. Known errors are printed as one message instead of a traceback.

    Exit codes: the value of work(); 1 for CheckFailed; 2 for InputError and for errors of the system, such as a full
    disk; 130 after a stop signal; 141 if the output pipe was closed. With `debug`, errors are raised.
    """
    try:
        code = work()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit fails again
        return 141
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (InputError, OSError, CheckFailed, Interrupted) as e:
        if debug:
            raise
        print(e if isinstance(e, Interrupted) else f"error: {e}", file=sys.stderr)
        return {Interrupted: 130, CheckFailed: 1}.get(type(e), 2)


def in_processes(work: Callable[[Any], object], argument: Any, config: Config) -> int:
    """Calls work(argument) in this process, or in one process per GPU of `config`. Returns the exit code."""
    from reid.device import process_count  # imports torch, so only after the flags are checked
    from reid.processes import launch

    count = process_count(config.device, config.gpus)
    if count > 1:
        return launch(partial(one_of_several, work, config.debug), argument, count)
    work(argument)
    return 0


def one_of_several(work: Callable[[Any], object], debug: bool, argument: Any) -> int:
    show_log()

    def done() -> int:
        work(argument)
        return 0

    return reported(done, debug)
