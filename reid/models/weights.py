"""Weights files: written, and read back as a model without any flags."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reid.config import Config
from reid.errors import InputError
from reid.files import atomic_file, sha256
from reid.models import build_model
from reid.models.pickles import bare, read_foreign
from reid.models.published import from_published, is_published
from reid.models.tensors import digest, is_safetensors, load_tensors, save_tensors


def load_model(path: str | Path) -> nn.Module:
    """The model of a weights file, in eval mode, on the CPU; see read_weights for what is accepted."""
    model, _ = read_weights(path)
    return model


def read_weights(path: str | Path) -> tuple[nn.Module, Config]:
    """(model in eval mode, its configuration) of our weights.pth or of a state dict in the published layout.

    The published layout says nothing of its input size: 384x128 is taken. Raises MissingInput, InputError.
    """
    content = load_tensors(Path(path))
    if "format" in content:
        missing = [k for k in ("config", "classes", "state") if k not in content]
        if content["format"] != 1 or missing:
            raise InputError(
                f"{path}: format {content['format']}, missing {missing or 'nothing'}; "
                "expected format 1 with config, classes, state"
            )
        plain = isinstance(content["config"], dict) and isinstance(content["state"], dict)
        if not plain or not isinstance(content["classes"], int) or content["classes"] < 0:
            raise InputError(f"{path}: config, classes or state is not what format 1 has; make the file again")
        config = Config.from_json(content["config"], str(path))
        model = build_model(config, content["classes"])
        fill(model, content["state"], path)
    elif is_published(content):
        state, stripes, num_classes = from_published(content)
        config = Config(stripes=stripes)
        model = build_model(config, num_classes)
        fill(model, state, path)
    else:
        raise InputError(
            f"{path} is neither weights of this project nor of the published layout; "
            f"its first keys: {', '.join(map(str, list(content)[:3]))}"
        )
    return model.eval(), config


def fill(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """load_state_dict whose error says in one line what does not fit."""
    own = model.state_dict()
    if odd := [k for k, v in state.items() if not isinstance(v, Tensor)]:
        raise InputError(f"{path}: {odd[0]} is no tensor")
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    # torch before 0.4.1 kept no batch counter; no result depends on it
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    foreign = [k for k in state if k not in own]
    if shapes or missing or foreign:
        raise InputError(
            f"{path} does not fit the model: {len(missing)} tensors missing, {len(foreign)} unknown, {len(shapes)} of "
            f"another shape (the first: {(shapes + missing + foreign)[0]}); another architecture or class count?"
        )
    model.load_state_dict(state, strict=False)


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


def read_any(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors by bare name, names of what else was there)."""
    if os.path.isfile(path) and os.access(path, os.R_OK) and is_safetensors(path):
        state, other = load_tensors(path), []
        state = {bare(k): v for k, v in state.items()}
    else:
        state, other = read_foreign(path)
    if "format" in state or "E_p.weight" in state:
        raise InputError(f"{path} is of this project already: its weights.pth is used as it is, with --weights")
    return state, other
