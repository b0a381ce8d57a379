"""Datasets in the folders of Market-1501: bounding_box_train/, query/, bounding_box_test/; and VeRi-776."""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from reid.data.folders import is_image
from reid.data.messages import indented, shortened
from reid.data.prepare.archive import Source
from reid.data.prepare.plan import ImageRow, Plan, Split
from reid.data.published import ENLARGED
from reid.errors import InputError

FOLDERS = {"trainval": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
VERI = {"trainval": "image_train", "query": "image_query", "gallery": "image_test"}
TRACKS = "test_track.txt"  # of VeRi-776: <track> <image> <image> ...
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
    root = find_root(source, f"{folders['trainval']}/", folders.values(), below)
    split, unreadable = Split(), list[str]()
    result = Plan([], [split], num_cameras)
    for subset, folder in folders.items():
        if not (names := inside(source, root + folder)):
            raise missing_part(source, f"{root}{folder}/", folders.values())
        split.subsets[subset].extend(result.add(rows_of(result, names, unreadable, folder)))
    for folder in DISTRACTORS if distractors else ():
        more = rows_of(result, inside(source, root + folder), unreadable, folder)
        split.gallery += result.add((name, 0, camid) for name, _, camid in more)
        result.extra += len(more)
    boxes = rows_of(Plan([], [], num_cameras), inside(source, root + GT_BBOX), unreadable, GT_BBOX)
    wanted = {result.images[i][1:] for i in split.query}
    split.multi_query = result.add(row for row in boxes if row[1:] in wanted)
    refuse_unreadable(source, unreadable, f"{{pid}}_c{{camera 1 to {num_cameras}}}_...")
    result.boxes = len(boxes)
    if result.extra:
        result.note = f"{ENLARGED} {result.extra:,} distractors"
    return result


def plan_veri(source: Source) -> Plan:
    """VeRi-776: names as 0002_c004_00084250_0.jpg, 20 cameras. The gallery has tracks where TRACKS lists them."""
    result = plan(source, num_cameras=20, folders=VERI)
    root = find_root(source, f"{VERI['trainval']}/", VERI.values())
    if root + TRACKS not in source.sizes:
        return result
    for line in source.read(root + TRACKS).decode("utf-8", "replace").splitlines():
        track, *images = line.split() or [""]
        result.tracks |= {f"{root}{VERI['gallery']}/{image}": track for image in images}
    gallery = [result.images[i][0] for i in result.splits[0].gallery]
    if absent := [name for name in gallery if name not in result.tracks]:
        raise InputError(f"{source.path}: {TRACKS} has no track of {len(absent):,} images, the first: {absent[0]}")
    return result


def rows_of(result: Plan, names: list[str], unreadable: list[str], folder: str) -> list[ImageRow]:
    """The images of a folder. Junk and files that are not images go to `result`, other names to `unreadable`."""
    rows = []
    for name in names:
        match = NAME.fullmatch(PurePosixPath(name).name)
        if not is_image(name):
            result.ignored.append(name)
        elif not match or not 1 <= int(match[2]) <= result.num_cameras or int(match[1]) < JUNK:
            unreadable.append(name)
        elif int(match[1]) == JUNK:
            result.dropped[f"junk (pid -1) in {folder}"] += 1
        else:
            rows.append((name, int(match[1]), int(match[2]) - 1))
    return rows


def find_root(source: Source, part: str, needed: Iterable[str], below: str = "") -> str:
    """Where the file or folder/ `part` is in the source: '' or 'a/b/', the shortest.

    below: a folder that must be above it. Raises InputError, which names the needed parts, if it is nowhere.
    """
    roots = set()
    for name in source.sizes:
        parts = PurePosixPath(name).parts
        if part.rstrip("/") in parts:
            above = parts[: parts.index(part.rstrip("/"))]
            if not below or below in (p.lower() for p in (source.path.name, *above)):
                roots.add("".join(p + "/" for p in above))
    if not roots:
        raise missing_part(source, f"{below}/{part}" if below else part, needed)
    return min(roots, key=lambda root: (root.count("/"), root))


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
