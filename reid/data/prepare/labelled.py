"""A user's images with numbers in place of labels."""

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from reid.data.labels import Labels
from reid.data.messages import indented
from reid.data.prepare.plan import ImageRow, Row
from reid.errors import InputError

logger = logging.getLogger(__name__)

MOST_PID = 100_000  # smaller whole numbers are kept as pids; other labels are numbered
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
    unique = {row.name: row for row in reversed(rows)}  # the first row of each image
    position = {name: i for i, name in enumerate(dict.fromkeys(row.name for row in rows))}
    differ, cameras = camera_labels([unique[name] for name in position])
    groups, held_out = identity_groups(rows)
    pids = numbered(groups, "identities", keep=True)
    camids = numbered([set(cameras)], "cameras")
    images = [(name, pids[unique[name].pid], camids[camera]) for name, camera in zip(position, cameras)]
    subsets: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        subsets[row.subset or ""].append(position[row.name])
    by_pid = {pid: label for label, pid in pids.items()}
    identities = [by_pid.get(pid, str(pid)) for pid in range(1 + max(by_pid))]
    places = list(camids) if differ != "files" else list(UNKNOWN)
    return Labelled(images, dict(subsets), Labels(identities, places), differ, held_out)


def camera_labels(rows: list[Row]) -> tuple[str, list[str]]:
    """(what matches differ in, camera of each row; "" if unknown). Sequences replace absent cameras."""
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
    return "files", [""] * len(rows)


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


def numbered(groups: Sequence[set[str]], what: str, keep: bool = False) -> dict[str, int]:
    """A number for each label: those of the first group first, each group in order.

    what: "identities" or "cameras", for messages. keep: whole numbers below MOST_PID keep
    their number where there is one group. Raises InputError for labels that look the same.
    """
    labels = set().union(*groups)
    assert_distinct(labels, what)
    whole = all(label.isdecimal() for label in labels)
    if keep and whole and len(groups) == 1 and max(map(int, labels), default=0) < MOST_PID:
        return {label: int(label) for label in sorted(labels)}
    ordered: dict[str, int] = {}
    for group in groups:
        for label in sorted(group, key=lambda label: (int(label) if whole else 0, label)):
            ordered.setdefault(label, len(ordered))
    return ordered


def assert_distinct(labels: set[str], what: str) -> None:
    """Raises InputError for labels with outer blanks, and for labels that look the same.

    '12' and '0012' are an error; 'Anna' and 'anna' are two identities with a warning.
    """
    if blank := sorted(label for label in labels if label != label.strip()):
        lines = [f"{label!r}" + (f", beside {label.strip()!r}" if label.strip() in labels else "") for label in blank]
        raise InputError(f"{what} with blanks at the ends; remove the blanks:{indented(lines)}")
    alike: dict[str, list[str]] = defaultdict(list)
    folded: dict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        text = " ".join(unicodedata.normalize("NFKC", label).split())
        alike[str(int(text)) if text.isdecimal() else text].append(label)
        folded[text.casefold()].append(label)
    if same := [" and ".join(map(ascii, some)) for some in alike.values() if len(some) > 1]:
        raise InputError(
            f"{what} that are the same number or look the same, but are written differently; write each in one way, "
            f"or rename one:{indented(same)}"
        )
    for some in (some for some in folded.values() if len(some) > 1):
        logger.warning(f"{what} {' and '.join(some)} differ in letter case only; they count as {len(some)}")
