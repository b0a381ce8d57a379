"""Datasets in Market-1501's folder form: bounding_box_train/, query/, bounding_box_test/."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from reid.data.prepare.archive import IMAGES, Source
from reid.data.prepare.plan import ENLARGED, Plan, Split
from reid.errors import InputError

FOLDERS = {"trainval": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
DISTRACTORS = ("images", "distractors", "distractors_500k")  # distractors_500k.zip unpacks as images/
NAME = re.compile(r"(-?\d+)_c(\d+)(?:s\d+)?_.+", re.IGNORECASE)  # 0002_c1s1_000451_03.jpg, 0001_c2_f0046182.jpg
JUNK = -1


def plan(source: Source, num_cameras: int, below: str = "") -> Plan:
    """Reads names as {pid}_c{camera}..., cameras from 1. pid -1 (junk) is dropped.

    `below` names the folder above the three where a source holds several such sets.
    """
    roots = find_roots(source, FOLDERS["trainval"], below)
    if not roots:
        raise missing_part(source, f"{below + '/' if below else ''}{FOLDERS['trainval']}/", FOLDERS.values())
    root = roots[0]
    result = Plan([], [Split()], num_cameras)
    unreadable: list[str] = []
    for subset, folder in FOLDERS.items():
        names = inside(source, root + folder)
        if not names:
            raise missing_part(source, f"{root}{folder}/", FOLDERS.values())
        add(result, names, getattr(result.splits[0], subset), unreadable, folder)
    refuse_unreadable(source, unreadable, f"{{pid}}_c{{camera 1 to {num_cameras}}}_...")
    return result


def plan_with_distractors(source: Source, num_cameras: int) -> Plan:
    """plan, with the images of a distractor folder beside the three as pid 0 in the gallery."""
    result = plan(source, num_cameras)
    root = find_roots(source, FOLDERS["trainval"])[0]
    unreadable: list[str] = []
    for folder in DISTRACTORS:
        rows: list[int] = []
        add(result, inside(source, root + folder), rows, unreadable, folder)
        for row in rows:
            name, _, camid = result.images[row]
            result.images[row] = (name, 0, camid)
        result.splits[0].gallery += rows
        result.extra += len(rows)
    refuse_unreadable(source, unreadable, f"{{pid}}_c{{camera 1 to {num_cameras}}}_...")
    if result.extra:
        result.note = f"{ENLARGED} {result.extra:,} distractors"
    return result


def add(result: Plan, names: list[str], rows: list[int], unreadable: list[str], folder: str) -> None:
    """Puts images into the plan and their rows into `rows`; names that say no pid and camera into `unreadable`."""
    for name in names:
        match = NAME.fullmatch(PurePosixPath(name).name)
        if not name.lower().endswith(IMAGES):
            result.ignored.append(name)
        elif not match or not 1 <= int(match[2]) <= result.num_cameras or int(match[1]) < JUNK:
            unreadable.append(name)
        elif int(match[1]) == JUNK:
            result.dropped[f"junk (pid -1) in {folder}"] += 1
        else:
            rows.append(len(result.images))
            result.images.append((name, int(match[1]), int(match[2]) - 1))


def find_roots(source: Source, part: str, below: str = "") -> list[str]:
    """What stands before the folder or file `part` in the names of the source ('' or 'a/b/'), the shortest first."""
    roots = set()
    for name in source.sizes:
        parts = PurePosixPath(name).parts
        if part in parts:
            above = parts[: parts.index(part)]
            if not below or below in (p.lower() for p in (source.path.name, *above)):
                roots.add("".join(p + "/" for p in above))
    return sorted(roots, key=lambda root: (root.count("/"), root))


def inside(source: Source, folder: str) -> list[str]:
    return [name for name in source.sizes if name.startswith(folder + "/")]


def missing_part(source: Source, part: str, needed: Iterable[str]) -> InputError:
    found = sorted({"/".join(PurePosixPath(name).parts[:2]) for name in source.sizes})
    shown = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
    return InputError(f"{source.path} has no {part}; expected {', '.join(needed)}; found {shown or 'nothing'}")


def refuse_unreadable(source: Source, names: list[str], expected: str) -> None:
    """Names that say no identity and camera are listed, never skipped."""
    if names:
        shown = "\n  ".join(names[:20]) + (f"\n  ... and {len(names) - 20:,} more" if len(names) > 20 else "")
        raise InputError(
            f"{source.path}: {len(names):,} image names are not of the form {expected}; rename them or take them "
            f"out:\n  {shown}"
        )
