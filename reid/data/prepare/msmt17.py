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
        text = source.read(root + file).decode("utf-8", "replace")
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            entry = parsed(line)
            if entry is None:
                unreadable.append(f"{file}, line {number}: {line}")
                continue
            path, pid, camid = entry
            name = f"{folder}/{path}"
            if name not in source.sizes:
                missing.append(f"{file}, line {number}: {name}")
            else:
                result.splits[0].subsets[subset].append(len(result.images))
                result.images.append((name, first + pid, camid))
    refuse_unreadable(source, unreadable, f"<path>/x_x_{{camera 1 to {CAMERAS}}}_... {{pid}}")
    if missing:
        raise InputError(f"{source.path}: {len(missing):,} listed images do not exist; the first: {missing[0]}")
    return result


def parsed(line: str) -> tuple[str, int, int] | None:
    """(path, pid, camera from 0) of '<path> <pid>'; the third field of the file name is the camera, from 1."""
    path, _, pid = line.strip().rpartition(" ")
    fields = PurePosixPath(path).name.split("_")
    if not pid.isdecimal() or len(fields) < 3 or not fields[2].isdecimal():
        return None
    camera = int(fields[2])
    return (path, int(pid), camera - 1) if 1 <= camera <= CAMERAS else None


def check_version(source: Source, root: str, version: str) -> None:
    """Raises InputError if the source is the other version."""
    names = source.sizes
    found = [v for v, folders in FOLDERS.items() if any(n.startswith(f"{root}{folders[0]}/") for n in names)]
    if found == [version]:
        return
    what = "must have either train/ or mask_train_v2/"
    if len(found) == 1:
        what = f"is MSMT17 {found[0].upper()}; run: python -m reid prepare msmt17_{found[0]}"
    raise InputError(f"{source.path} {what} (V2 blurs the faces, so results of V1 and V2 are not comparable)")
