"""Reading the checkpoint of a run, and whether a training may continue from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from reid.config import Config
from reid.errors import InputError
from reid.models.weights import load_checkpoint

KEYS = {"config", "fingerprint", "state", "training", "step", "best"}


def load_latest(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """checkpoint.pth of a run, or previous.pth with a warning if that one is missing or damaged; None without both.

    Raises InputError if both are damaged.
    """
    files = [p for p in (folder / "checkpoint.pth", folder / "previous.pth") if p.exists()]
    for path in files:
        try:
            return load_checkpoint(path)
        except InputError as e:
            if path == files[-1]:
                raise
            say(f"WARNING: {e}. Falling back to {files[-1]}, so some steps are repeated")
    return None


def check_content(content: dict[str, Any], folder: Path) -> None:
    """Raises InputError if the file is not the checkpoint of a training."""
    if missing := KEYS - content.keys():
        raise InputError(
            f"{folder / 'checkpoint.pth'} is not the checkpoint of a training: it has no "
            f"{', '.join(sorted(missing))}; restore it, or delete it to start from step 0"
        )


def changed_settings(content: dict[str, Any], config: Config, precision: str, teacher: str, folder: Path) -> str:
    """Settings that affect results and differ from the checkpoint's, as 'lr 0.01 -> 0.002'; "" if none differ.

    precision: the resolved one. 'auto' can mean another precision on another device. teacher: the SHA-256 of its
    file, which may have been moved; "" without one.
    """
    stored = Config.from_json(content["config"], str(folder))
    changed = {name: (getattr(stored, name), value) for name, value in config.changes(stored).items()}
    before = content.get("precision", precision)  # older checkpoints do not have it
    if before != precision:
        changed["precision"] = (before, precision)
    before = content.get("teacher", "")
    changed.pop("teacher", None)
    if before != teacher:
        changed["teacher"] = (f"SHA-256 {before[:12] or 'none'}", teacher[:12] or "none")
    return ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
