"""Trained weights from which a training starts: whole models of this project, published ones, and backbones.

A part of the model (the first word of its tensors' names: base, E_p, ...) is taken if the file has all its
tensors in the same shapes. The backbone must fit. Classifiers are taken only for the same dataset, since
equal numbers of identities do not make them the same people.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reid.config import Config
from reid.errors import InputError
from reid.files import sha256
from reid.models.backbone import imagenet_file
from reid.models.importing import backbone_matches, check_finite, find_backbone
from reid.models.pickles import bare
from reid.models.published import from_published, is_published
from reid.models.tensors import NotPlain, load_tensors
from reid.models.weights import check_format, read_any

CLASSIFIERS = ("classifiers", "classifier")  # of our models
SHOWN = 6  # kinds of unused tensors in the table


@dataclass(frozen=True)
class Start:
    """The content of a file, by the names of this project's models.

    fingerprint: the dataset of its classifiers, where it is known. unused: names without a place in our models.
    """

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    unused: list[str]
    fingerprint: str | None = None

    @property
    def facts(self) -> dict[str, str]:
        """For versions.json."""
        return {"file": self.path.as_posix(), "sha256": sha256(self.path)}


def read_start(source: str, backbone: str) -> Start:
    """The tensors of `source`, "auto" (ImageNet weights of `backbone`) or a file; no code in the file runs.

    The file has weights of this project, the published layout, or a backbone with torchvision's names under any
    prefix, also inside a checkpoint or a pickled model. Raises MissingInput, InputError.
    """
    path = imagenet_file(backbone) if source == "auto" else Path(source)
    try:
        content = load_tensors(path)
    except NotPlain:  # perhaps a pickled model
        content = {}
    if "format" in content:
        return own_start(path, content)
    plain = content and all(isinstance(value, Tensor) for value in content.values())
    state, other = ({bare(k): v for k, v in content.items()}, []) if plain else read_any(path)
    if is_published(state):
        tensors, stripes, classes = from_published(dict(state))
        kind = f"the published RRID, stripes {' '.join(map(str, stripes))}, {classes} classes"
        return Start(path, kind, tensors, other)
    matches = backbone_matches(state, backbone, path)
    match = next((m for m in matches if not m.misfits), None) or find_backbone(state, path)
    names = {f"base.{name}": match.prefix + name for name in match.found}
    unused = [name for name in state if name not in set(names.values())]
    return Start(path, match.backbone, {k: state[name] for k, name in names.items()}, unused + other)


def own_start(path: Path, content: dict[str, Any]) -> Start:
    """Of a weights file or a checkpoint of this project."""
    check_format(content, path)
    c = Config.from_json(content["config"], str(path))
    kind = " ".join(filter(None, (c.model, *map(str, c.stripes), "on", c.backbone)))
    kind += f", {content['classes']} classes"
    return Start(path, kind, content["state"], [], content.get("fingerprint"))


def start_from(model: nn.Module, start: Start, backbone: str, fingerprint: str) -> str:
    """Fills the parts of `model` that fit, and returns a table for the log.

    backbone: its name in the model. fingerprint: of the dataset that is trained on. Raises InputError if the file has
    another backbone.
    """
    own = model.state_dict()
    source = matching_names(own, start.tensors)
    check_backbone(own, source, start, backbone)
    parts: dict[str, list[str]] = {}
    for name in own:
        parts.setdefault(part_of(name), []).append(name)
    lines = [f"{backbone} starts from {start.path}: {start.kind}", f"{'part':<14}{'tensors':>8}{'taken':>8}"]
    taken: dict[str, str] = {}
    for part, names in parts.items():
        found = {name: source[name] for name in names if name in source}
        missing = [name for name in names if name not in found and not name.endswith("num_batches_tracked")]
        note = ""
        if missing:
            absent = all(part_of(name) != part for name in start.tensors)
            note = "new: not in the file" if absent else "new: of another shape"
        elif part in CLASSIFIERS and start.fingerprint != fingerprint:
            note = "new: not known to be for the same identities"
        else:
            taken |= found
        lines.append(f"{part:<14}{len(names):>8}{0 if note else len(found):>8}  {note}".rstrip())
    check_finite({key: start.tensors[key] for key in taken.values()}, start.path)
    model.load_state_dict({name: start.tensors[key] for name, key in taken.items()}, strict=False)
    used = set(taken.values())
    unused = [key for key in start.tensors if key not in used] + start.unused
    return "\n".join([*lines, *unused_line(unused)])


def check_backbone(own: dict[str, Tensor], source: dict[str, str], start: Start, backbone: str) -> None:
    """Raises InputError unless the backbone in the file is the model's, no layer more or less."""
    plain = {without_branch(name) for name in own}
    missing = [n for n in own if part_of(n) == "base" and n not in source and not n.endswith("num_batches_tracked")]
    unknown = [n for n in start.tensors if part_of(n) == "base" and without_branch(n) not in plain]
    if missing or unknown:
        raise InputError(
            f"{start.path} ({start.kind}) does not fit {backbone}: {len(missing)} tensors are missing or of another "
            f"shape and {len(unknown)} are unknown (the first: {(missing + unknown)[0]}); give the --backbone of the "
            "file, or another file"
        )


def matching_names(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, str]:
    """{name in the model: name in the file} of tensors with the same shape.

    Each of several branches (mgn) can start from the one backbone of another model, and the other way round.
    """
    plain: dict[str, str] = {}
    for key in theirs:
        plain.setdefault(without_branch(key), key)
    found = {}
    for name, value in own.items():
        key = name if name in theirs else plain.get(without_branch(name), "")
        if key and theirs[key].shape == value.shape:
            found[name] = key
    return found


def without_branch(name: str) -> str:
    return re.sub(r"^base\.(trunk|branches\.\d+)\.", "base.", name)


def part_of(name: str) -> str:
    return name.split(".")[0]


def unused_line(names: list[str]) -> list[str]:
    """The names of tensors that were not taken, numbered by kind."""
    kinds = Counter(re.sub(r"\d+", "*", part_of(name)) for name in names)
    shown = [f"{kind} ({count})" for kind, count in kinds.most_common(SHOWN)]
    more = " ..." if len(kinds) > SHOWN else ""
    return [f"in the file, not used: {', '.join(shown)}{more}"] if shown else []
