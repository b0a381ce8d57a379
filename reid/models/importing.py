"""Weights of other programs -> files that this project can use.

The published RRID in any form becomes a weights file of this project, and so do models of other
projects that are one of ours (whole.py). A backbone with torchvision's names under any prefix
becomes initial weights for --pretrained.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reid.config import Config
from reid.errors import InputError
from reid.files import atomic_file, writing
from reid.models import build_model
from reid.models.backbone import IBN, build_backbone
from reid.models.layers import check_height
from reid.models.published import from_published, is_published
from reid.models.tensors import save_tensors
from reid.models.weights import fill, read_any, save_weights
from reid.models.whole import find_whole, other_parts
from reid.variants import BACKBONES

MAX_NETWORKS = 20  # in one file; more indicate a damaged or hostile file


@dataclass(frozen=True)
class Imported:
    """The content of a file, and the part of it that was taken."""

    kind: str  # description to print
    tensors: list[str]  # names in the file, without prefixes of DataParallel and torch.compile
    taken: set[str]  # those of them that were written
    other: list[str]  # names of entries that are not tensors


@dataclass(frozen=True)
class Match:
    """How the tensors under a prefix fit a backbone."""

    backbone: str
    prefix: str
    found: list[str]  # names without the prefix
    missing: list[str]  # absent or of another shape
    unknown: list[str]

    @property
    def misfits(self) -> list[str]:
        return self.missing + self.unknown


def import_weights(source: Path, target: Path, h: int | None = None, w: int = 128) -> Imported:
    """Reads any weights file without running its code, and writes `target`.

    h, w: input size in pixels, which files of other programs do not contain; h None: that of the
    published training. Raises MissingInput, InputError.
    """
    state, other = read_any(source)
    if is_published(state):
        kind = import_published(state, source, target, h or 384, w)
        return Imported(kind, list(state), set(state), other)
    match = find_backbone(state, source)
    if whole := find_whole(state, match.backbone, h, w):
        used = {k: state[name] for k, name in whole.names.items()}
        check_finite(used, source)
        save(target, used, whole.config, whole.classes, source)
        return Imported(whole.kind, list(state), set(whole.names.values()), other)
    names = {name: match.prefix + name for name in match.found}
    check_finite({k: state[k] for k in names.values()}, source)
    with writing(target), atomic_file(target) as temporary:
        save_tensors(temporary, {name: state[k] for name, k in names.items()})
    prefix = match.prefix or "nothing"
    kind = f"{match.backbone} without heads (names begin with {prefix}); use it with train --pretrained"
    kind += reasons(state)
    return Imported(kind, list(state), set(names.values()), other)


def import_published(state: dict[str, Tensor], source: Path, target: Path, h: int, w: int) -> str:
    """Writes a weights file of this project and returns its description."""
    if bad := [k for k in state if re.match(r"local_\d{3,}_", k)]:
        raise InputError(f"{source}: {bad[0]}: a stripe count has at most two digits")
    try:
        ours, stripes, classes = from_published(dict(state))
    except (InputError, RuntimeError, IndexError) as e:  # torch raises them for shapes that do not match
        raise InputError(f"{source}: {e}") from e
    check_finite(state, source)
    check_height(h, stripes)
    save(target, ours, Config(stripes=stripes, h=h, w=w, pretrained="none"), classes, source)
    heads = f"{classes} classes" if classes else "no classifiers"
    return f"the published RRID, stripes {' '.join(map(str, stripes))}, {heads}"


def save(target: Path, state: dict[str, Tensor], config: Config, classes: int, source: Path) -> None:
    """Writes a weights file of this project. Raises InputError, naming `source`, if the state does not fit."""
    fill(build_model(config, classes), state, source)
    with writing(target):
        save_weights(target, {"config": config.to_json(), "classes": classes, "state": state})


def reasons(state: dict[str, Tensor]) -> str:
    """For a message: why the whole model cannot be used; "" for unknown models."""
    found = other_parts(state)
    return f". The whole model is not one of this project: {'; '.join(found)}" if found else ""


def find_backbone(state: dict[str, Tensor], source: Path) -> Match:
    """The backbone whose tensors the state has. Raises InputError, which names the nearest one."""
    names = [name for name in BACKBONES if name.endswith(IBN) == any(".IN." in key for key in state)]
    matches = [match for name in names for match in backbone_matches(state, name, source)]
    if not matches:
        raise InputError(
            f"{source} has {len(state)} tensors ({', '.join(list(state)[:3])} ...), neither of "
            "the published RRID nor of a backbone with torchvision's names "
            f"({', '.join(BACKBONES)}){reasons(state)}"
        )
    best = min(matches, key=lambda m: (len(m.misfits), m.backbone, m.prefix))
    if best.misfits:
        raise InputError(
            f"{source} is most similar to {best.backbone}, but {len(best.missing)} tensors are missing "
            f"or of another shape and {len(best.unknown)} are unknown (the first: "
            f"{best.prefix}{best.misfits[0]}); it is another architecture{reasons(state)}"
        )
    return best


def backbone_matches(state: dict[str, Tensor], name: str, source: Path) -> list[Match]:
    """The fit of the backbone `name` for every prefix under which it may be."""
    with torch.device("meta"):
        own = build_backbone(name).state_dict()
    # the last convolution locates the backbone; heads rarely have a tensor with its name
    anchor = [k for k, v in own.items() if v.ndim == 4][-1]
    prefixes = {k.removesuffix(anchor) for k in state if k.endswith(anchor)}
    if len(prefixes) > MAX_NETWORKS:
        raise InputError(f"{source} has {len(prefixes)} networks, expected one")
    parts = {k.split(".")[0] for k in own}
    matches = []
    for prefix in sorted(prefixes):
        theirs = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        fitting = {k for k, v in own.items() if k in theirs and theirs[k].shape == v.shape}
        missing = [k for k in own if k not in fitting and not k.endswith("num_batches_tracked")]
        unknown = [k for k in theirs if k not in own and k.split(".")[0] in parts]
        found = sorted(own.keys() & theirs.keys())
        matches.append(Match(name, prefix, found, missing, unknown))
    return matches


def check_finite(tensors: dict[str, Tensor], source: Path) -> None:
    """Raises InputError for values that are not finite in float32, the type they are used in."""
    if bad := [k for k, v in tensors.items() if not v.float().isfinite().all()]:
        raise InputError(f"{source}: {bad[0]} is not finite ({len(bad)} such tensors); the file is damaged")
