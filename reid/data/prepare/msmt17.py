"""MSMT17: list_{train,val,query,gallery}.txt beside the image folders. V1 shows faces, V2 blurs them."""

from pathlib import PurePosixPath

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
CAMERAS = 15


def plan(source: Source, version: str) -> Plan:
    """Lines are '<path below the folder> <pid>'; the third field of a file name is the camera, from 1.

    train and val together are trainval. Test identities, which count from 0 again, follow the training identities.
    """
    roots = find_roots(source, "list_train.txt")
    if not roots:
        raise missing_part(source, "list_train.txt", [*FOLDERS[version], *LISTS])
    root = roots[0]
    found = [v for v, (train, _) in FOLDERS.items() if any(n.startswith(f"{root}{train}/") for n in source.sizes)]
    if found != [version]:
        what = f"is MSMT17 {found[0].upper()}: python -m reid prepare msmt17_{found[0]}" if len(found) == 1 else (
            f"must have either {' or '.join(folders[0] + '/' for folders in FOLDERS.values())}")  # fmt: skip
        raise InputError(f"{source.path} {what} (V2 blurs the faces, so results of V1 and V2 are not comparable)")
    result = Plan([], [Split()], CAMERAS)
    unreadable, missing, first = [], [], 0
    for file, subset in LISTS.items():
        if root + file not in source.sizes:
            raise missing_part(source, root + file, LISTS)
        if subset == "query":
            first = 1 + max((pid for _, pid, _ in result.images), default=-1)
        folder = root + FOLDERS[version][subset != "trainval"]
        for number, line in enumerate(source.read(root + file).decode("utf-8", "replace").splitlines(), 1):
            path, _, pid = line.strip().rpartition(" ")
            fields = PurePosixPath(path).name.split("_")
            name = f"{folder}/{path}"
            if not line.strip():
                continue
            if (
                not pid.isdecimal()
                or len(fields) < 3
                or not fields[2].isdecimal()
                or not 1 <= int(fields[2]) <= CAMERAS
            ):
                unreadable.append(f"{file}, line {number}: {line}")
            elif name not in source.sizes:
                missing.append(f"{file}, line {number}: {name}")
            else:
                getattr(result.splits[0], subset).append(len(result.images))
                result.images.append((name, first + int(pid), int(fields[2]) - 1))
    refuse_unreadable(source, unreadable, f"<path>/x_x_{{camera 1 to {CAMERAS}}}_... {{pid}}")
    if missing:
        raise InputError(f"{source.path}: {len(missing):,} listed images are not there, the first: {missing[0]}")
    return result
