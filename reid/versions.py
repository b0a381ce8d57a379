"""What produced a result: the versions of the packages, the commit of the source and the hardware."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from reid.files import write_json

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "h5py")


def installed(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the source, with '+' if files differ from it; None outside a git checkout."""
    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def git(*arguments: str) -> str:
    """Output of git in the folder of the source."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, check=True, encoding="utf-8", errors="replace")
    return done.stdout.strip()


def note_versions(folder: Path, used: dict[str, Any]) -> None:
    """Adds this start of a run to its versions.json: command, commit, packages and hardware.

    used: further facts, such as the device and the dataset fingerprint.
    """
    path = folder / "versions.json"
    starts = None
    with suppress(FileNotFoundError, ValueError):  # the first start, or a file damaged by a power failure
        starts = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, [*(starts if isinstance(starts, list) else ()), this_start() | used])


def this_start() -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
