"""Datasets with text files as the lists of their images: MSMT17 and VehicleID."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from reid.data.labels import Labels
from reid.data.prepare.archive import Source
from reid.data.prepare.market import find_root, missing_part, refuse_unreadable
from reid.data.prepare.plan import Plan, Split
from reid.data.records import WITHOUT_CAMERAS
from reid.errors import InputError

MSMT17 = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}  # V2 blurs the faces
MSMT17_LISTS = {
    "list_train.txt": "trainval",
    "list_val.txt": "trainval",
    "list_query.txt": "query",
    "list_gallery.txt": "gallery",
}
# <path> <pid>; the third field of the file name is the camera, from 1
MSMT17_LINE = re.compile(r"(?P<image>(?:.*/)?[^/_]*_[^/_]*_0*(?P<camera>[1-9]|1[0-5])_[^/]*) (?P<pid>\d+)")
SIZES = {"small": 800, "medium": 1_600, "large": 2_400}  # test identities of VehicleID
VEHICLEID = "train_test_split"  # folder of its lists
VEHICLEID_LINE = re.compile(r"(?P<image>\w+)(?:\.jpg)? (?P<pid>\d+)")
FORMS = {MSMT17_LINE: "<path>/x_x_{camera 1 to 15}_... {pid}", VEHICLEID_LINE: "<image> {pid}"}  # for messages
VEHICLEID_NOTE = (
    f"{WITHOUT_CAMERAS}: every test image is query and gallery, and is not compared with itself; VehicleID's protocol "
    "is --cmc vehicleid"
)


def plan_msmt17(source: Source, version: str) -> Plan:
    """The lists train and val together are trainval.

    Test identities, which start again at 0, are numbered after the training identities.
    """
    root = find_root(source, "list_train.txt", [*MSMT17[version], *MSMT17_LISTS])
    check_version(source, root, version)
    split = Split()
    result, first = Plan([], [split], num_cameras=15), 0
    for file, subset in MSMT17_LISTS.items():
        if subset == "query":
            first = 1 + max((pid for _, pid, _ in result.images), default=-1)
        folder = root + MSMT17[version][subset != "trainval"]
        lines = read_list(source, root + file, MSMT17_LINE, folder + "/{}", MSMT17_LISTS)
        rows = [(name, first + int(line["pid"]), int(line["camera"]) - 1) for name, line in lines]
        split.subsets[subset].extend(result.add(rows))
    return result


def check_version(source: Source, root: str, version: str) -> None:
    """Raises InputError if the source is the other version."""
    tops = {v: f"{root}{folders[0]}/" for v, folders in MSMT17.items()}
    found = [v for v, top in tops.items() if any(name.startswith(top) for name in source.sizes)]
    if found == [version]:
        return
    what = "must have either train/ or mask_train_v2/"
    if len(found) == 1:
        what = f"is MSMT17 {found[0].upper()}; run: python -m reid prepare msmt17_{found[0]}"
    raise InputError(f"{source.path} {what} (V2 blurs the faces, so results of V1 and V2 are not comparable)")


def plan_vehicleid(source: Source, size: str) -> Plan:
    """VehicleID with one of its three test lists.

    Cameras are unknown: the test images of an identity are numbered in place of cameras, so that an image is compared
    with all others, but not with itself.
    """
    files = [f"{VEHICLEID}/{file}" for file in ("train_list.txt", f"test_list_{SIZES[size]}.txt")]
    root = find_root(source, f"{VEHICLEID}/", ["image", *files])
    train, test = (read_list(source, root + file, VEHICLEID_LINE, root + "image/{}.jpg", files) for file in files)
    result, seen = Plan([], [], 1), Counter[int]()
    trainval = result.add((name, int(line["pid"]), 0) for name, line in train)
    for name, line in test:
        pid = int(line["pid"])
        result.images.append((name, pid, seen[pid]))
        seen[pid] += 1
    tests = list(range(len(trainval), len(result.images)))
    result.splits = [Split(trainval, tests, tests)]
    result.num_cameras = max(seen.values(), default=1)
    pids = 1 + max((pid for _, pid, _ in result.images), default=0)
    result.labels = Labels([str(pid) for pid in range(pids)], ["unknown"] * result.num_cameras)
    result.note = VEHICLEID_NOTE
    return result


def read_list(
    source: Source, path: str, form: re.Pattern, image: str, needed: Iterable[str]
) -> list[tuple[str, re.Match]]:
    """(image, match of `form`) of each line of a list.

    image: where the images are, for example "train/{}". needed: the lists of the dataset. Raises InputError for a
    missing list, lines of another form, and images that do not exist.
    """
    if path not in source.sizes:
        raise missing_part(source, path, needed)
    found, unreadable, missing = [], [], []
    for number, line in enumerate(source.read(path).decode("utf-8", "replace").splitlines(), 1):
        where, match = f"{PurePosixPath(path).name}, line {number}", form.fullmatch(line.strip())
        if match and (name := image.format(match["image"])) in source.sizes:
            found.append((name, match))
        elif match:
            missing.append(f"{where}: {name}")
        elif line.strip():
            unreadable.append(f"{where}: {line.strip()}")
    refuse_unreadable(source, unreadable, FORMS[form])
    if missing:
        raise InputError(f"{source.path}: {len(missing):,} listed images do not exist; the first: {missing[0]}")
    return found
