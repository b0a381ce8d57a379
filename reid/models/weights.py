"""Weights files and checkpoints of this project, read and written.

Reading, from the most convenient to the most basic:
load_model, read_weights: a model, from our format or the published layout.
load_checkpoint: the content of a file in our format.
read_any: the tensors of a file from any other program, for importing.py.
"""

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

FORMAT = 1


def load_model(path: str | Path) -> nn.Module:
    """The model of a weights file, in eval mode, on the CPU. See read_weights for the formats and errors."""
    model, _ = read_weights(path)
    return model


def read_weights(path: str | Path) -> tuple[nn.Module, Config]:
    """(model in eval mode, its configuration) of a weights.pth or a published state dict.

    The published layout does not contain its input size; 384x128 is assumed. Raises
    MissingInput, InputError.
    """
    content = load_tensors(Path(path))
    if "format" in content:
        check_format(content, path)
        config = Config.from_json(content["config"], str(path))
        classes, state = content["classes"], content["state"]
    elif is_published(content):
        state, stripes, classes = from_published(content)
        config = Config(stripes=stripes)
    else:
        first = ", ".join(map(str, list(content)[:3]))
        raise InputError(
            f"{path} has weights neither of this project nor of the published layout (its first keys: {first}). "
            f"Convert it with: python -m reid import {path} weights.pth. A backbone without heads can start a "
            f"training: python train.py --pretrained {path}"
        )
    model = build_model(config, classes)
    fill(model, state, path)
    return model.eval(), config


def trained_on(path: Path) -> str | None:
    """The fingerprint of the dataset that a weights.pth was trained on; None if the file does not tell."""
    return load_tensors(path).get("fingerprint")


def check_format(content: dict[str, Any], path: str | Path) -> None:
    """Raises InputError unless content has the entries of format 1."""
    missing = [k for k in ("config", "classes", "state") if k not in content]
    if content["format"] != FORMAT or missing:
        raise InputError(
            f"{path}: format {content['format']}, missing {missing or 'nothing'}; "
            f"expected format {FORMAT} with config, classes, state"
        )
    kinds = {"config": dict, "classes": int, "state": dict}
    wrong = [k for k, kind in kinds.items() if not isinstance(content[k], kind)]
    if wrong or content["classes"] < 0:
        raise InputError(f"{path}: {(wrong or ['classes'])[0]} is not valid in format {FORMAT}; create the file again")


def fill(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """load_state_dict with a one-line message for tensors that do not fit. Raises InputError."""
    own = model.state_dict()
    if other := [k for k, v in state.items() if not isinstance(v, Tensor)]:
        raise InputError(f"{path}: {other[0]} is not a tensor")
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    # files of torch before 0.4.1 have no batch counter; no result depends on it
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in own]
    if wrong := shapes + missing + unknown:
        raise InputError(
            f"{path} does not fit the model: {len(missing)} tensors missing, {len(unknown)} unknown, "
            f"{len(shapes)} of another shape (the first: {wrong[0]}); does it have another "
            "architecture or number of classes?"
        )
    model.load_state_dict(state, strict=False)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content that save_checkpoint wrote. Raises MissingInput, InputError for a damaged file."""
    content = load_tensors(path)
    if "format" not in content:
        raise InputError(f"{path} is not a checkpoint of this project")
    return content


def save_checkpoint(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Writes content and its digest. `path` is replaced atomically.

    An existing file is kept as `previous`.
    """
    content = {"format": FORMAT, **content}
    with atomic_file(path) as temporary:
        save_tensors(temporary, {**content, "digest": digest(content)})
        if previous is not None and path.exists():
            os.replace(path, previous)


def save_weights(path: Path, content: dict[str, Any]) -> None:
    """save_checkpoint, with the SHA-256 of the file beside it in the format of sha256sum."""
    save_checkpoint(path, content)
    with atomic_file(path.with_name(path.name + ".sha256")) as temporary:
        temporary.write_text(f"{sha256(path)}  {path.name}\n", encoding="utf-8", newline="\n")


def read_any(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors by name, names of the other entries) of another program's file.

    The prefixes of DataParallel and torch.compile are removed. Raises MissingInput, InputError,
    also for a file in our format.
    """
    readable = os.path.isfile(path) and os.access(path, os.R_OK)
    if readable and is_safetensors(path):
        state = {bare(k): v for k, v in load_tensors(path).items()}
        other: list[str] = []
    else:
        state, other = read_foreign(path)
    if "format" in state or "E_p.weight" in state:
        raise InputError(
            f"{path} already has the format of this project; use it as it is, with --weights or train --pretrained"
        )
    return state, other
