"""python -m reid import: weights of other programs, read without running their code."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from reid.errors import InputError

if TYPE_CHECKING:
    from reid.models.importing import Imported


def add_arguments(parser) -> None:
    parser.add_argument("source", metavar="SRC", help="the file: .pth, .pth.tar, .pt, .pkl, .safetensors")
    parser.add_argument("target", metavar="DST", help="the file to write")
    parser.add_argument("--h", type=int, help="image height in training (default: that of the published training)")
    parser.add_argument("--w", type=int, default=128, help="image width in training (default 128)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")


def main(arguments) -> int:
    """Exit codes: 0 imported, 2 bad input."""
    source, target, h, w = Path(arguments.source), Path(arguments.target), arguments.h, arguments.w
    if min(w if h is None else h, w) < 1:
        raise InputError(f"--h {h} --w {w}: height and width must be at least 1")
    # Path.exists would raise for a folder without read permission
    if os.path.exists(target):
        if not arguments.overwrite:
            raise InputError(f"{target} already exists; give another name, or --overwrite")
        if os.path.exists(source) and os.path.samefile(source, target):
            raise InputError(f"{target} is the input file; give another name")
    from reid.files import sha256  # imports torch, so only after the checks
    from reid.models.importing import import_weights

    imported = import_weights(source, target, h, w)
    print(f"{source}: {imported.kind}\n{table(imported)}")
    for path in (source, target):
        print(f"SHA-256 {sha256(path)}  {path}")
    return 0


def table(imported: "Imported") -> str:
    """Numbers of tensors in the file and of tensors taken, by the first part of their names."""
    from reid.models.backbone import CLASSIFIERS

    def part(name: str) -> str:
        return re.sub(r"\d+", "*", name.split(".")[0])

    present = Counter(map(part, imported.tensors))
    used = Counter(map(part, imported.taken))
    lines = [f"{'part':<30}{'in the file':>12}{'taken':>8}"]
    for name, count in present.items():
        note = "  classifier" if name + "." in CLASSIFIERS else "  not used"
        lines.append(f"{name:<30}{count:>12}{used[name]:>8}{note if used[name] < count else ''}")
    lines.append(f"{'all':<30}{len(imported.tensors):>12}{len(imported.taken):>8}")
    if other := imported.other:
        more = " ..." if len(other) > 5 else ""
        lines.append(f"not tensors, not used: {', '.join(other[:5])}{more}")
    return "\n".join(lines)
