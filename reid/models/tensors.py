"""Files of tensors and plain values: read without running code, checked against their digest."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reid.errors import InputError, MissingInput


def load_tensors(path: Path) -> dict[str, Any]:
    """A file's tensors and plain values by name; no code in the file runs.

    A digest in the file is checked. Raises MissingInput, InputError.
    """
    if not Path(path).is_file():
        raise MissingInput(f"weights file {path} does not exist (or is a folder)")
    try:
        if is_safetensors(path):
            content = load_safetensors(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as e:  # torch raises many types for damaged files and for foreign classes
        raise InputError(
            f"{path} cannot be read as weights ({type(e).__name__}): it is cut short, damaged, or "
            "has more than plain tensors; copy or create it again. For a pickled model: "
            "python -m reid import"
        ) from e
    if not isinstance(content, dict) or not all(isinstance(k, str) for k in content):
        kind = type(content).__name__
        raise InputError(f"{path} is a {kind}, expected a state dict with names")
    expected = content.pop("digest", None)
    if "format" in content and expected is not None and expected != digest(content):
        raise InputError(f"{path} is damaged: its content does not match its digest; copy or create it again")
    return content


def is_safetensors(path: Path) -> bool:
    with open(path, "rb") as f:
        return f.read(9)[8:] == b"{"  # 8 bytes with the length of the JSON header, then the header


def load_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, or the whole content of a file of save_safetensors."""
    try:
        from safetensors import safe_open
    except ImportError as e:
        raise InputError(f"{path} is a safetensors file; reading it needs: pip install safetensors") from e
    with safe_open(path, "pt") as f:
        metadata = f.metadata() or {}
        state = {name: f.get_tensor(name) for name in sorted(f.keys())}
    return {**json.loads(metadata["rrid"]), "state": state} if "rrid" in metadata else state


def save_safetensors(path: Path, content: dict[str, Any], about: dict[str, str]) -> None:
    """Writes content (format, config, classes, state), `about` and their digest. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = {name: content["state"][name].contiguous() for name in sorted(content["state"])}
    plain = {k: v for k, v in content.items() if k != "state"} | {"about": about}
    plain["digest"] = digest({**plain, "state": state})
    path.touch()
    mode = path.stat().st_mode  # the library creates files that only their owner can read
    try:
        # one metadata entry, because the library writes several in random order
        save_file(state, path, {"rrid": json.dumps(plain)})
    except SafetensorError as e:
        raise OSError(str(e)) from e
    path.chmod(mode)


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """torch.save that raises OSError instead of RuntimeError if the disk is full."""
    try:
        torch.save(content, path)
    except RuntimeError as e:
        raise OSError(f"torch could not write all of {path}; is the disk full?") from e


def digest(content: Any) -> str:
    """SHA-256 over tensors (type, shape, bytes) and plain values, independent of the file format."""
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
            h.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            h.update(json.dumps(value).encode())

    add(content)
    return h.hexdigest()
