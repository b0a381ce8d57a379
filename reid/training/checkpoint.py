"""Checkpoints: plain tensors and values, written atomically, checked against their own digest when read."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reid.errors import InputError
from reid.models.files import digest, load_tensors, save_tensors, sha256
from reid.runs import atomic_file

FORMAT = 1


def save(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Writes content + its digest; the file at `path` is replaced whole or not at all, and kept as `previous`."""
    content = {"format": FORMAT, **content}
    with atomic_file(path) as temporary:
        save_tensors(temporary, {**content, "digest": digest(content)})
        if previous is not None and path.exists():
            os.replace(path, previous)


def save_weights(path: Path, content: dict[str, Any]) -> None:
    """save, and the SHA-256 of the file beside it, as sha256sum writes it."""
    save(path, content)
    with atomic_file(path.with_name(path.name + ".sha256")) as temporary:
        temporary.write_text(f"{sha256(path)}  {path.name}\n")


def load(path: Path) -> dict[str, Any]:
    """What save wrote. Raises MissingInput, InputError when the file is damaged."""
    content = load_tensors(path)
    if "format" not in content:
        raise InputError(f"{path} is no checkpoint of this project")
    return content


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
