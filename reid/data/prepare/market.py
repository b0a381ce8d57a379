"""Datasets in Market-1501's folder form: bounding_box_train/, query/, bounding_box_test/."""

import re
from pathlib import PurePosixPath

from reid.data.prepare.archive import IMAGES, Source
from reid.data.prepare.plan import Plan, Split
from reid.errors import InputError

FOLDERS = {"trainval": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
NAME = re.compile(r"(-?\d+)_c(\d+)(?:s\d+)?_.+", re.IGNORECASE)  # 0002_c1s1_000451_03.jpg, 0001_c2_f0046182.jpg
JUNK = -1


def plan(source: Source, num_cameras: int, below: str = "") -> Plan:
    """Reads names as {pid}_c{camera}..., cameras from 1. pid -1 (junk) is dropped.

    `below` names the folder that must be above the three, where a source holds several such sets.
    """
    roots = find_roots(source, FOLDERS["trainval"], below)
    if not roots:
        top = sorted({PurePosixPath(n).parts[0] for n in source.sizes})
        raise InputError(f"{source.path} has no folder {below + '/' if below else ''}{FOLDERS['trainval']}; expected "
                         f"{', '.join(FOLDERS.values())}; found {', '.join(top[:10]) or 'nothing'}")  # fmt: skip
    root = roots[0]
    result = Plan([], [Split()], num_cameras)
    unreadable = []
    for subset, folder in FOLDERS.items():
        names = inside(source, root + folder)
        if not names:
            raise InputError(f"{source.path}: {root}{folder}/ is missing or empty; all of "
                             f"{', '.join(FOLDERS.values())} are needed")  # fmt: skip
        for name in names:
            match = NAME.fullmatch(PurePosixPath(name).name)
            if not name.lower().endswith(IMAGES):
                result.ignored.append(name)
            elif not match or not 1 <= int(match[2]) <= num_cameras or int(match[1]) < JUNK:
                unreadable.append(name)
            elif int(match[1]) == JUNK:
                result.dropped[f"junk (pid -1) in {folder}"] += 1
            else:
                getattr(result.splits[0], subset).append(len(result.images))
                result.images.append((name, int(match[1]), int(match[2]) - 1))
    refuse_unreadable(source, unreadable, f"{{pid}}_c{{camera 1 to {num_cameras}}}_...")
    return result


def find_roots(source: Source, folder: str, below: str = "") -> list[str]:
    """What stands before `folder` in the names of the source ('' or 'a/b/'), the shortest first."""
    roots = set()
    for name in source.sizes:
        parts = PurePosixPath(name).parts[:-1]
        if folder in parts and (not below or below in parts[: parts.index(folder)]):
            roots.add("".join(part + "/" for part in parts[: parts.index(folder)]))
    return sorted(roots, key=lambda root: (root.count("/"), root))


def inside(source: Source, folder: str) -> list[str]:
    return [name for name in source.sizes if name.startswith(folder + "/")]


def refuse_unreadable(source: Source, names: list[str], expected: str) -> None:
    """Names that say no identity and camera are listed, never skipped."""
    if names:
        shown = "\n  ".join(names[:20]) + (f"\n  ... and {len(names) - 20:,} more" if len(names) > 20 else "")
        raise InputError(f"{source.path}: {len(names):,} image names are not of the form {expected}; rename them or "
                         f"take them out:\n  {shown}")  # fmt: skip
