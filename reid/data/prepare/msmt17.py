"""MSMT17: list_{train,val,query,gallery}.txt beside the image folders. V2 blurs the faces."""

import re

from reid.data.prepare.archive import Source
from reid.data.prepare.market import find_roots, missing_part, refuse_unreadable
from reid.data.prepare.plan import Plan, Split
from reid.errors import InputError

FOLDERS = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
LISTS = {
    "list_train.txt": "trainval",
    "list_val.txt": "trainval",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
# <path> <pid>; the third field of the file name is the camera, from 1
LINE = re.compile(r"(?P<path>(?:.*/)?[^/_]*_[^/_]*_(?P<camera>\d+)_[^/]*) (?P<pid>\d+)")
CAMERAS = 15


def plan(source: Source, version: str) -> Plan:
    """The lists train and val together are trainval.

    Test identities, which start again at 0, are numbered after the training identities.
    """
    roots = find_roots(source, "list_train.txt")
    if not roots:
        raise missing_part(source, "list_train.txt", [*FOLDERS[version], *LISTS])
    root = roots[0]
    check_version(source, root, version)
    result = Plan([], [Split()], CAMERAS)
    unreadable: list[str] = []
    missing: list[str] = []
    first = 0
    for file, subset in LISTS.items():
        if root + file not in source.sizes:
            raise missing_part(source, root + file, LISTS)
        if subset == "query":
            first = 1 + max((pid for _, pid, _ in result.images), default=-1)
        folder = root + FOLDERS[version][subset != "trainval"]
        lines = source.read(root + file).decode("utf-8", "replace").splitlines()
        for number, line in enumerate(map(str.strip, lines), 1):
            entry = LINE.fullmatch(line)
            name = f"{folder}/{entry['path']}" if entry else ""
            if line and not (entry and 1 <= int(entry["camera"]) <= CAMERAS):
                unreadable.append(f"{file}, line {number}: {line}")
            elif line and name not in source.sizes:
                missing.append(f"{file}, line {number}: {name}")
            elif entry:
                result.splits[0].subsets[subset].append(len(result.images))
                result.images.append((name, first + int(entry["pid"]), int(entry["camera"]) - 1))
    refuse_unreadable(source, unreadable, f"<path>/x_x_{{camera 1 to {CAMERAS}}}_... {{pid}}")
    if missing:
        raise InputError(f"{source.path}: {len(missing):,} listed images do not exist; the first: {missing[0]}")
    return result


def check_version(source: Source, root: str, version: str) -> None:
    """Raises InputError if the source is the other version."""
    tops = {v: f"{root}{folders[0]}/" for v, folders in FOLDERS.items()}
    found = [v for v, top in tops.items() if any(name.startswith(top) for name in source.sizes)]
    if found == [version]:
        return
    what = "must have either train/ or mask_train_v2/"
    if len(found) == 1:
        what = f"is MSMT17 {found[0].upper()}; run: python -m reid prepare msmt17_{found[0]}"
    raise InputError(f"{source.path} {what} (V2 blurs the faces, so results of V1 and V2 are not comparable)")
