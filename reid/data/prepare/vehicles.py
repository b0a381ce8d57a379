"""Vehicles: VeRi-776 in the folders of Market-1501's form, and VehicleID with its lists."""

import re
from collections import Counter
from pathlib import PurePosixPath

from reid.data.labels import Labels
from reid.data.prepare import market
from reid.data.prepare.archive import Source
from reid.data.prepare.plan import Plan, Split
from reid.data.records import WITHOUT_CAMERAS
from reid.errors import InputError

VERI = {"trainval": "image_train", "query": "image_query", "gallery": "image_test"}
TRACKS = "test_track.txt"  # <track> <image> <image> ...
LISTS = "train_test_split"
SIZES = {"small": 800, "medium": 1_600, "large": 2_400}  # test identities of VehicleID
LINE = re.compile(r"(?P<image>\w+)(?:\.jpg)? (?P<vehicle>\d+)")
NOTE = (
    f"{WITHOUT_CAMERAS}: every test image is query and gallery, and is not compared with itself; VehicleID's protocol "
    "is --cmc vehicleid"
)


def plan_veri(source: Source) -> Plan:
    """VeRi-776: names as 0002_c004_00084250_0.jpg, 20 cameras. The gallery has tracks where TRACKS lists them."""
    result = market.plan(source, num_cameras=20, folders=VERI)
    root = market.find_roots(source, VERI["trainval"])[0]
    if root + TRACKS in source.sizes:
        result.tracks = read_tracks(source, root)
        absent = [result.images[i][0] for i in result.splits[0].gallery if result.images[i][0] not in result.tracks]
        if absent:
            raise InputError(f"{source.path}: {TRACKS} has no track of {len(absent):,} images, the first: {absent[0]}")
    return result


def read_tracks(source: Source, root: str) -> dict[str, str]:
    """{image: track}: each line of TRACKS is a track's name and then its images."""
    tracks: dict[str, str] = {}
    for line in source.read(root + TRACKS).decode("utf-8", "replace").splitlines():
        track, *images = line.split() or [""]
        tracks |= {f"{root}{VERI['gallery']}/{image}": track for image in images}
    return tracks


def plan_vehicleid(source: Source, size: str) -> Plan:
    """VehicleID with one of its three test lists.

    Cameras are unknown: the test images of an identity are numbered in place of cameras, so that an image is compared
    with all others, but not with itself.
    """
    files = {"trainval": f"{LISTS}/train_list.txt", "test": f"{LISTS}/test_list_{SIZES[size]}.txt"}
    roots = market.find_roots(source, LISTS)
    if not roots:
        raise market.missing_part(source, f"{LISTS}/", ["image", *files.values()])
    root, result, split = roots[0], Plan([], [Split()], 1), Split()
    seen: Counter = Counter()
    for subset, file in files.items():
        for name, pid in read_list(source, root, file):
            place = seen[pid] if subset == "test" else 0
            seen[pid] += 1
            (split.trainval if subset == "trainval" else split.gallery).append(len(result.images))
            result.images.append((name, pid, place))
    split.query = list(split.gallery)
    result.splits = [split]
    result.num_cameras = 1 + max(camid for _, _, camid in result.images)
    identities = [str(pid) for pid in range(1 + max(seen))]
    result.labels = Labels(identities, ["unknown"] * result.num_cameras)
    result.note = NOTE
    return result


def read_list(source: Source, root: str, file: str) -> list[tuple[str, int]]:
    """(image, identity) of each line "0375116 6". Raises InputError for other lines and missing images."""
    if root + file not in source.sizes:
        raise market.missing_part(source, root + file, ["image", file])
    rows, unreadable = [], []
    lines = source.read(root + file).decode("utf-8", "replace").splitlines()
    for number, line in enumerate(map(str.strip, lines), 1):
        entry = LINE.fullmatch(line)
        if entry:
            rows.append((f"{root}image/{entry['image']}.jpg", int(entry["vehicle"])))
        elif line:
            unreadable.append(f"{file}, line {number}: {line}")
    if unreadable:
        raise InputError(f"{source.path}: {unreadable[0]!r} is not of the form 'image vehicle'; correct the list")
    if missing := [PurePosixPath(name).name for name, _ in rows if name not in source.sizes]:
        raise InputError(f"{source.path}: {len(missing):,} images of {file} do not exist; the first: {missing[0]}")
    return rows
