"""Checkpoints: plain tensors and values, written atomically, checked against their own digest when read."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reid.errors import InputError
from reid.models.backbone import load_tensors, sha256
from reid.runs import atomic_file

FORMAT = 1


def save(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Writes content + its digest; the file at `path` is replaced whole or not at all, and kept as `previous`."""
    content = {"format": FORMAT, **content}
    with atomic_file(path) as temporary:
        torch.save({**content, "digest": digest(content)}, temporary)
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
    expected = content.pop("digest", None)
    if expected != digest(content):
        raise InputError(f"{path} is damaged: its digest does not fit its content")
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


def digest(content: Any) -> str:
    """SHA-256 over tensors (type, shape, bytes) and plain values, independent of how they are stored."""
    h = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            h.update(f"dict {len(value)}".encode())
            for k, v in value.items():
                h.update(json.dumps(k).encode())
                add(v)
        elif isinstance(value, (list, tuple)):
            h.update(f"list {len(value)}".encode())
            for v in value:
                add(v)
        elif isinstance(value, Tensor):
            h.update(f"{value.dtype} {tuple(value.shape)}".encode())
            h.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        else:
            h.update(json.dumps(value).encode())

    add(content)
    return h.hexdigest()
