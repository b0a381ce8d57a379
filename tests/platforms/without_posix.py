"""Takes from this interpreter what Windows lacks, then runs the commands given as a JSON list of argument lists.

    python tests/platforms/without_posix.py '[["train", "--profile", "demo"], ...]'

An argument list may begin with "stop after N": Ctrl-C then comes during step N. Prints the exit codes as JSON.
"""

import ctypes
import importlib
import json
import multiprocessing
import os
import signal
import sys
import warnings
from multiprocessing import context as contexts
from pathlib import Path

MODULES = ("fcntl", "grp", "pwd", "resource", "syslog", "termios")
FUNCTIONS = ("fork", "forkpty", "posix_fallocate", "O_DIRECTORY", "sysconf", "killpg")


def take_away() -> None:
    """Removes modules, functions and signals, and makes open files impossible to rename or delete."""
    importlib.import_module("psutil")  # its part for Linux uses some of them; Windows has another part
    for name in MODULES:
        sys.modules[name] = None
    for name in FUNCTIONS:
        delattr(os, name)
    os.symlink = refuse_link
    signal.signal = only_windows_signals(signal.signal)
    del signal.SIGHUP
    ctypes.CDLL.__init__ = only_named_libraries(ctypes.CDLL.__init__)
    for name in ("fork", "forkserver"):
        del contexts._concrete_contexts[name]
    multiprocessing.set_start_method("spawn", force=True)
    for name in ("replace", "rename", "unlink", "remove"):
        setattr(os, name, only_closed_files(getattr(os, name)))


def refuse_link(source, target, *_, **__):
    raise OSError(22, "A required privilege is not held by the client", str(target))


def only_windows_signals(handle):
    def checked(number, handler):
        if number != signal.SIGINT:
            raise ValueError("signal: no handler for this number")
        return handle(number, handler)

    return checked


def only_named_libraries(load):
    def checked(self, name, *arguments, **options):
        if name is None:
            raise TypeError("bad argument type for built-in operation")
        load(self, name, *arguments, **options)

    return checked


def only_closed_files(change):
    """os.replace and others, which on Windows fail for a file that is open or mapped."""

    def checked(*paths, **options):
        for path in paths:
            if "dir_fd" not in options and in_use(os.path.realpath(path)):
                raise PermissionError(13, "The process cannot access the file because it is being used", str(path))
        return change(*paths, **options)

    return checked


def in_use(path: str) -> bool:
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == path:
                return True
        except OSError:
            continue
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return any(line.endswith(" " + path) for line in maps.splitlines())


take_away()  # also in processes that are spawned, which import this file
warnings.filterwarnings("ignore", category=EncodingWarning)
warnings.filterwarnings("error", category=EncodingWarning, module=r"reid\.")


def sum_of_ranks(_) -> int:
    import torch

    from reid.processes import connected, gather

    with connected(torch.device("cpu")) as here:
        return 0 if gather(torch.tensor([here.rank + 1])).tolist() == [1, 2] else 3


def run(arguments: list[str]) -> int:
    from reid.__main__ import main
    from reid.training.step import TrainStep

    if arguments == ["two processes"]:
        from reid.processes import launch

        return launch(sum_of_ranks, None, 2)
    step = TrainStep.__call__
    if arguments[0].startswith("stop after "):
        last, arguments = int(arguments[0].split()[-1]), arguments[1:]

        def interrupted(self, *inputs):
            nonlocal last
            last -= 1
            if last == 0:
                signal.raise_signal(signal.SIGINT)
            return step(self, *inputs)

        TrainStep.__call__ = interrupted
    sys.argv = ["reid", *arguments]
    try:
        return main(arguments)
    finally:
        TrainStep.__call__ = step


if __name__ == "__main__":
    codes = []
    for command in json.loads(sys.argv[1]):
        print("$", *command, flush=True)
        codes.append(run(command))
    print(json.dumps(codes))
