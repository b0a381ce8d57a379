"""python -m reid import: anybody's weights -> ours, without running code of the file (models/pickles.py).

Understood: the published RRID in any form (whole pickled model, state dict, with or without classifiers), which becomes
a weights file of this project; and backbones of torchvision's names under any prefix (torchvision itself, FastReID,
torchreid and others), which become initial weights for train.py --pretrained.
"""

import os
import re
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from reid.config import Config
from reid.errors import InputError
from reid.files import atomic_file, sha256, writing
from reid.models import build_model
from reid.models.backbone import CLASSIFIERS, build_backbone
from reid.models.layers import check_height
from reid.models.published import from_published, is_published
from reid.models.tensors import save_tensors
from reid.models.weights import fill, read_any, save_weights
from reid.variants import BACKBONES


def add_arguments(parser) -> None:
    parser.add_argument("source", metavar="SRC", help="the file as it is: .pth, .pth.tar, .pt, .pkl, .safetensors")
    parser.add_argument("target", metavar="DST", help="the file to write")
    parser.add_argument("--h", type=int, default=384, help="image height it was trained at (default 384)")
    parser.add_argument("--w", type=int, default=128, help="image width it was trained at (default 128)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")


def main(arguments) -> int:
    source, target = Path(arguments.source), Path(arguments.target)
    if min(arguments.h, arguments.w) < 1:
        raise InputError(f"--h {arguments.h} --w {arguments.w}: a height and a width are at least 1")
    if os.path.exists(target) and not arguments.overwrite:  # Path.exists raises where a folder cannot be looked into
        raise InputError(f"{target} is already there; give another name, or --overwrite")
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target):
        raise InputError(f"{target} is the file that is read; give another name")
    state, other = read_any(source)
    if is_published(state):
        kind, taken = import_published(state, source, target, arguments.h, arguments.w)
    else:
        kind, taken = import_backbone(state, source, target)
    print(f"{source}: {kind}\n{table(state, taken, other)}")
    for path in (source, target):
        print(f"SHA-256 {sha256(path)}  {path}")
    return 0


def check_finite(tensors: dict[str, Tensor], source: Path) -> None:
    """float() as here all weights are used: what is too large for it is no better than infinite."""
    if odd := [k for k, v in tensors.items() if not v.float().isfinite().all()]:
        raise InputError(f"{source}: {odd[0]} is not finite ({len(odd)} such tensors), the file is damaged")


def import_published(state: dict[str, Tensor], source: Path, target: Path, h: int, w: int) -> tuple[str, set[str]]:
    """Writes a weights file of this project. Returns what it is and the names taken: all, or InputError."""
    if odd := [k for k in state if re.match(r"local_\d{3,}_", k)]:
        raise InputError(f"{source}: {odd[0]}: no image is cut into so many stripes")
    try:
        ours, stripes, classes = from_published(dict(state))
    except (InputError, RuntimeError, IndexError) as e:  # the latter two of shapes that do not go together
        raise InputError(f"{source}: {e}") from e
    check_finite(state, source)
    check_height(h, stripes)
    config = Config(stripes=stripes, h=h, w=w, pretrained="none")
    fill(build_model(config, classes), ours, source)
    with writing(target):
        save_weights(target, {"config": config.to_json(), "classes": classes, "state": ours})
    heads = f"{classes} classes" if classes else "no classifiers"
    return f"the published RRID, stripes {' '.join(map(str, stripes))}, {heads}", set(state)


def import_backbone(state: dict[str, Tensor], source: Path, target: Path) -> tuple[str, set[str]]:
    """Writes a backbone's state dict under torchvision's names. Returns what it is and the names taken.

    Raises InputError when no backbone of ours fits; the message names the nearest and what it lacks.
    """
    candidates = []
    for name in BACKBONES:
        with torch.device("meta"):
            own = build_backbone(name).state_dict()
        anchor = [k for k, v in own.items() if v.ndim == 4][-1]  # the last convolution, which heads hardly have
        parts = {k.split(".")[0] for k in own}
        prefixes = {k.removesuffix(anchor) for k in state if k.endswith(anchor)}
        if len(prefixes) > 20:
            raise InputError(f"{source} holds {len(prefixes)} networks, expected one")
        for prefix in prefixes:
            named = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            lacks = [
                k
                for k, v in own.items()
                if not k.endswith("num_batches_tracked") and (k not in named or named[k].shape != v.shape)
            ]
            beyond = [k for k in named if k.split(".")[0] in parts and k not in own]
            candidates.append((len(lacks) + len(beyond), name, prefix, lacks, beyond, own.keys() & named.keys()))
    if not candidates:
        raise InputError(
            f"{source} holds {len(state)} tensors ({', '.join(list(state)[:3])} ...), neither of the published RRID "
            f"nor of a backbone of torchvision's names ({', '.join(BACKBONES)})"
        )
    wrong, name, prefix, lacks, beyond, found = min(candidates)
    if wrong:
        raise InputError(
            f"{source} is nearest to {name}, but {len(lacks)} tensors are missing or of another shape and "
            f"{len(beyond)} have no place (the first: {prefix}{(lacks + beyond)[0]}); it is another architecture"
        )
    taken = {k: state[prefix + k] for k in sorted(found)}
    check_finite({prefix + k: v for k, v in taken.items()}, source)
    with writing(target), atomic_file(target) as temporary:
        save_tensors(temporary, taken)
    return f"{name} (names begin with {prefix or 'nothing'}); use it with --pretrained", {prefix + k for k in taken}


def table(state: dict[str, Tensor], taken: set[str], other: list[str]) -> str:
    """Tensors in the file and tensors taken, by the first parts of their names, numbers left out."""

    def group(name: str) -> str:
        return re.sub(r"\d+", "*", name.split(".")[0])

    present, used = Counter(map(group, state)), Counter(group(k) for k in state if k in taken)
    lines = [f"{'part':<30}{'in the file':>12}{'taken':>8}"]
    for name, count in present.items():
        note = "" if used[name] == count else "  classifier" if name + "." in CLASSIFIERS else "  not used"
        lines.append(f"{name:<30}{count:>12}{used[name]:>8}{note}")
    lines.append(f"{'all':<30}{len(state):>12}{len(taken):>8}")
    if other:
        lines.append(f"not tensors, not used: {', '.join(other[:5])}{' ...' if len(other) > 5 else ''}")
    return "\n".join(lines)
