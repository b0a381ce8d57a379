"""Draws training and test sets from a user's own images."""

import random
from collections import defaultdict

from reid.data.messages import shortened
from reid.data.prepare.own import Row
from reid.data.prepare.plan import ImageRow, Plan, Split
from reid.data.records import WITHOUT_CAMERAS
from reid.errors import InputError

JUNK = "-1"  # label of images that show no identity
MOST_PID = 100_000  # smaller whole numbers are kept as pids; other labels are numbered
ByCamera = dict[int, list[int]]  # {camera: rows of the images of one identity}
NO_CAMERAS = f"{WITHOUT_CAMERAS}: each query counts as camera 0 and the gallery as camera 1"


def plan_own(rows: list[Row], test_share: float, seed: int) -> tuple[Plan, str]:
    """The plan, and how the labels were understood, with three examples."""
    kept = [row for row in rows if row.pid != JUNK]
    bare = [row.name for row in kept if row.camera is None]
    if bare and len(bare) < len(kept):
        raise InputError(
            f"{len(bare):,} of {len(kept):,} images have no camera, the first: {bare[0]}; give all of them one, or none"
        )
    pids = numbered({row.pid for row in kept}, keep=True)
    cameras = numbered({row.camera for row in kept if row.camera is not None}, keep=False)
    images = [(row.name, pids[row.pid], cameras.get(row.camera or "", 0)) for row in kept]
    split = draw_split(images, bool(cameras), test_share, seed)
    note = f"split drawn with seed {seed}"
    if not cameras:
        note += f"; {NO_CAMERAS}"
        for i in split.gallery:
            images[i] = (*images[i][:2], 1)
    plan = Plan(images, [split], len(cameras) or 2, note=note)
    if len(kept) < len(rows):
        plan.dropped["junk (identity -1)"] = len(rows) - len(kept)
    return plan, understood(kept, pids, cameras)


def draw_split(images: list[ImageRow], with_cameras: bool, test_share: float, seed: int) -> Split:
    """The test gets about test_share of the identities, drawn from those with a possible match.

    Each camera with two images of a test identity gives one query, so every query has a
    match from another camera in the gallery.
    """
    places: dict[int, ByCamera] = defaultdict(lambda: defaultdict(list))
    for i, (_, pid, camid) in enumerate(images):
        places[pid][camid].append(i)
    able = [pid for pid in sorted(places) if len(places[pid] if with_cameras else places[pid][0]) > 1]
    count = min(max(round(test_share * len(places)), 1), len(able), len(places) - 2)
    if count < 1:
        what = "cameras" if with_cameras else "files"
        hint = "; without cameras (no camid, no {cam}) two images are a match" if with_cameras else ""
        raise InputError(
            f"{len(places)} identities, {len(able)} of them with images from two {what}: too few for training "
            f"and test, which need 3 identities, one of them with a match{hint}"
        )
    rng = random.Random(seed)
    test, split = set(rng.sample(able, count)), Split()
    for pid, by_camera in sorted(places.items()):
        everything = sorted(i for rows in by_camera.values() for i in rows)
        if pid in test:
            queries = draw_queries(by_camera, rng)
            split.query += queries
            split.gallery += [i for i in everything if i not in queries]
        else:
            split.trainval += everything
    return split


def draw_queries(by_camera: ByCamera, rng: random.Random) -> list[int]:
    """One row of each camera that has two; if no camera has two, one row of one camera."""
    several = [rows for rows in by_camera.values() if len(rows) > 1]
    return [rng.choice(rows) for rows in several or [rng.choice(list(by_camera.values()))]]


def numbered(labels: set[str], keep: bool) -> dict[str, int]:
    """A number for each label, in order. keep: small whole numbers are used as they are."""
    whole = all(label.isdecimal() for label in labels)
    if whole and keep and max(map(int, labels), default=0) < MOST_PID:
        return {label: int(label) for label in labels}
    values = {label: int(label) if whole else label for label in labels}
    order = {value: n for n, value in enumerate(sorted(set(values.values())))}
    return {label: order[value] for label, value in values.items()}


def understood(rows: list[Row], pids: dict[str, int], cameras: dict[str, int]) -> str:
    names = sorted(cameras, key=cameras.__getitem__)
    what = f"{len(names)} cameras ({shortened(names, 8)})" if cameras else NO_CAMERAS
    lines = [f"understood: {len(rows):,} images of {len(set(pids.values())):,} identities; {what}"]
    for name, pid, camera in (rows[0], rows[len(rows) // 2], rows[-1]):
        seen = "" if camera is None else f", camera {camera!r} = {cameras[camera]}"
        lines.append(f"  {name} -> identity {pid!r} = pid {pids[pid]}{seen}")
    return "\n".join(lines)
