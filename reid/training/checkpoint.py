"""Checkpoints: plain tensors and values, written atomically, checked against their own digest when read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from reid.errors import InputError
from reid.models.weights import load


def load_latest(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """checkpoint.pth of a run, or previous.pth where that is missing or damaged, which is said; None without any.

    Raises InputError when both are damaged.
    """
    files = [p for p in (folder / "checkpoint.pth", folder / "previous.pth") if p.exists()]
    for path in files:
        try:
            return load(path)
        except InputError as e:
            if path == files[-1]:
                raise
            say(f"WARNING: {e}. Falling back to {files[-1]}, so some steps are done again")
    return None
