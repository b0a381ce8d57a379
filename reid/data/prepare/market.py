"""Datasets in the folders of Market-1501: bounding_box_train/, query/, bounding_box_test/."""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from reid.data.folders import is_image
from reid.data.messages import indented, shortened
from reid.data.prepare.archive import Source
from reid.data.prepare.plan import Plan, Split
from reid.data.published import ENLARGED
from reid.errors import InputError

FOLDERS = {"trainval": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
DISTRACTORS = ("images", "distractors", "distractors_500k")  # distractors_500k.zip unpacks as images/
# 0002_c1s1_000451_03.jpg, 0001_c2_f0046182.jpg
NAME = re.compile(r"(-?\d+)_c(\d+)(?:s\d+)?_.+", re.IGNORECASE)
JUNK = -1
GT_BBOX = "gt_bbox"  # boxes drawn by hand, of training and test identities


def plan(
    source: Source, num_cameras: int, below: str = "", distractors: bool = False, folders: Mapping[str, str] = FOLDERS
) -> Plan:
    """Reads names as {pid}_c{camera}..., cameras from 1. Images of pid -1 (junk) are dropped.

    below: the folder above the three, where a source holds several sets.
    distractors: images of a distractor folder beside the three join the gallery as pid 0.
    folders: by subset. Images of gt_bbox beside them that show a query's identity in its camera are kept for
    --multi_query.
    """
    roots = find_roots(source, folders["trainval"], below)
    if not roots:
        part = f"{below}/{folders['trainval']}/" if below else f"{folders['trainval']}/"
        raise missing_part(source, part, folders.values())
    root, result = roots[0], Plan([], [Split()], num_cameras)
    unreadable: list[str] = []
    for subset, folder in folders.items():
        names = inside(source, root + folder)
        if not names:
            raise missing_part(source, f"{root}{folder}/", folders.values())
        result.splits[0].subsets[subset] += add(result, names, unreadable, folder)
    for folder in DISTRACTORS if distractors else ():
        rows = add(result, inside(source, root + folder), unreadable, folder, pid=0)
        result.splits[0].gallery += rows
        result.extra += len(rows)
    add_multi_query(result, inside(source, root + GT_BBOX), unreadable)
    refuse_unreadable(source, unreadable, f"{{pid}}_c{{camera 1 to {num_cameras}}}_...")
    if result.extra:
        result.note = f"{ENLARGED} {result.extra:,} distractors"
    return result


def add_multi_query(result: Plan, names: list[str], unreadable: list[str]) -> None:
    """Adds the images of gt_bbox with identity and camera of a query."""
    boxes = Plan([], [Split()], result.num_cameras)
    add(boxes, names, unreadable, GT_BBOX)
    (split,) = result.splits
    wanted = {result.images[i][1:] for i in split.query}
    kept = [row for row in boxes.images if row[1:] in wanted]
    split.multi_query = list(range(len(result.images), len(result.images) + len(kept)))
    result.images += kept
    result.boxes = len(boxes.images)


def add(result: Plan, names: list[str], unreadable: list[str], folder: str, pid: int | None = None) -> list[int]:
    """Adds the images of a folder to the plan and returns their rows.

    Names without pid and camera go to `unreadable`. pid: replaces the pid of the names.
    """
    first = len(result.images)
    for name in names:
        match = NAME.fullmatch(PurePosixPath(name).name)
        if not is_image(name):
            result.ignored.append(name)
        elif not match or not 1 <= int(match[2]) <= result.num_cameras or int(match[1]) < JUNK:
            unreadable.append(name)
        elif int(match[1]) == JUNK:
            result.dropped[f"junk (pid -1) in {folder}"] += 1
        else:
            own = int(match[1]) if pid is None else pid
            result.images.append((name, own, int(match[2]) - 1))
    return list(range(first, len(result.images)))


def find_roots(source: Source, part: str, below: str = "") -> list[str]:
    """Where the folder or file `part` is in the source: '' or 'a/b/', the shortest first."""
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
    found_text = shortened(found, 10) or "nothing"
    return InputError(
        f"{source.path} has no {part}; expected {', '.join(needed)}; found {found_text}. Give the unchanged source"
    )


def refuse_unreadable(source: Source, names: list[str], expected: str) -> None:
    """Raises InputError with the names that give no identity and camera."""
    if names:
        raise InputError(
            f"{source.path}: {len(names):,} image names are not of the form {expected}; "
            f"rename or remove them:{indented(names)}"
        )
