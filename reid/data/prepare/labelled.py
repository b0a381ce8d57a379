"""A user's images with numbers in place of labels."""

import logging
from collections import defaultdict
from dataclasses import dataclass

from reid.data.labels import Labels
from reid.data.prepare.numbering import numbered
from reid.data.prepare.plan import ImageRow
from reid.data.prepare.rows import Row
from reid.errors import InputError

logger = logging.getLogger(__name__)

UNKNOWN = ("unknown (query)", "unknown (gallery)")  # labels of camera 0 and 1 without cameras


@dataclass
class Labelled:
    """Images and their subsets.

    images: each image once. subsets: {subset: positions in images}, "" where none was given.
    differ: what the images of a match differ in: "cameras", "sequences" (numbered as cameras)
    or "files" (all camids are 0). held_out: the number of identities of val, if they are the
    last of the training identities, else 0.
    """

    images: list[ImageRow]
    subsets: dict[str, list[int]]
    labels: Labels
    differ: str
    held_out: int = 0

    @property
    def with_cameras(self) -> bool:
        return self.differ != "files"


def labelled(rows: list[Row]) -> Labelled:
    """Numbers the labels of the rows. Raises InputError for labels that are not clear."""
    position = {name: i for i, name in enumerate(dict.fromkeys(row.name for row in rows))}
    first = {row.name: row for row in reversed(rows)}
    unique = [first[name] for name in position]
    differ, cameras = camera_labels(unique)
    groups, held_out = identity_groups(rows)
    pids = numbered(groups, "identities", keep=True)
    camids = numbered([set(cameras)], "cameras")
    if cameras:
        images = [(r.name, pids[r.pid], camids[c]) for r, c in zip(unique, cameras)]
    else:
        images = [(r.name, pids[r.pid], 0) for r in unique]
    subsets: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        subsets[row.subset or ""].append(position[row.name])
    names = [str(pid) for pid in range(1 + max(pids.values()))]
    for label, pid in pids.items():
        names[pid] = label
    places = list(camids) or list(UNKNOWN)
    return Labelled(images, dict(subsets), Labels(names, places), differ, held_out)


def camera_labels(rows: list[Row]) -> tuple[str, list[str]]:
    """(what matches differ in, camera of each row or []). Sequences replace absent cameras."""
    for kind in ("camera", "sequence"):
        known = [row for row in rows if getattr(row, kind) is not None]
        if known and len(known) < len(rows):
            bare = [row.name for row in rows if getattr(row, kind) is None]
            raise InputError(
                f"{len(bare):,} of {len(rows):,} images have no {kind}, the first: {bare[0]}; "
                "give all of them one, or none"
            )
        if known and kind == "camera":
            if any(row.sequence for row in rows):
                logger.info("sequences are not used, because cameras are known")
            return "cameras", [row.camera or "" for row in rows]
        if known:
            return "sequences", [f"sequence {row.sequence}" for row in rows]
    return "files", []


def identity_groups(rows: list[Row]) -> tuple[list[set[str]], int]:
    """(identities in the order of their numbers, number of identities of val at the end of training).

    Identities that are only in val follow the other training identities, so that
    `Dataset.hold_out` takes them first.
    """
    people: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        people[row.subset if row.subset in ("train", "val") else "test"].add(row.pid)
    train, val, test = people["train"], people["val"], people["test"]
    if val and train and not val & train:
        return [train, val, test], len(val)
    return [train | val | test], 0
