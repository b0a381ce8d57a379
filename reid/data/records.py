"""A dataset: lists of images with identities and cameras."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from reid.data.labels import Labels
from reid.errors import InputError

SUBSETS = ("trainval", "query", "gallery")
TEST_ONLY = "test set only"  # in the protocol of a dataset that is made without training images
WITHOUT_CAMERAS = "no cameras were given"  # in the protocol of a dataset that has none
EASY = "without cameras, near-duplicate frames can answer each other, so these scores are easy to reach"


class Image(NamedTuple):
    """An image file with its identity and camera; -1 if unknown."""

    path: str
    pid: int
    camid: int  # from 0


@dataclass(frozen=True, repr=False)
class Dataset:
    """The images of each subset.

    protocol: name of the test lists, stored in every result.
    distractors: pids of the gallery for which there is no query.
    labels: the user's names of identities, cameras and images.
    multi_query: further images of the queries' identities and cameras, for --multi_query.
    """

    name: str
    folder: Path
    trainval: list[Image]
    query: list[Image]
    gallery: list[Image]
    num_cameras: int
    protocol: str
    distractors: frozenset[int]
    labels: Labels = field(default_factory=Labels)
    multi_query: list[Image] = field(default_factory=list)

    @property
    def subsets(self) -> dict[str, list[Image]]:
        return {subset: getattr(self, subset) for subset in SUBSETS}

    @property
    def without_cameras(self) -> bool:
        """Whether the images, or some of the combined datasets, have no cameras. Each image then counts as a match."""
        return WITHOUT_CAMERAS in self.protocol

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the sorted (file name, bytes, pid, camid, subset) of all images."""
        rows = sorted(
            f"{os.path.basename(path)} {os.path.getsize(path)} {pid} {camid} {subset}\n"
            for subset, images in self.subsets.items()
            for path, pid, camid in images
        )
        return hashlib.sha256("".join(rows).encode()).hexdigest()

    def source(self, path: str) -> str:
        """The original name of a file in images/, or ""."""
        file = os.path.relpath(path, self.folder / "images").replace(os.sep, "/")
        source = self.labels.source(file)
        return "" if source == file else source

    def file(self, path: str) -> str:
        """A file for messages, with its original name. So are `person` and `camera`."""
        source = self.source(path)
        return f"{path} ({source})" if source else path

    def person(self, pid: int) -> str:
        label = self.labels.identity(pid)
        return f"pid {pid}" if label == str(pid) else f"identity {label} (pid {pid})"

    def camera(self, camid: int) -> str:
        label = self.labels.camera(camid)
        return f"camera {camid}" if label == str(camid) else f"camera {label} (number {camid})"

    def hold_out(self, num_val: int) -> tuple[list[Image], list[Image]]:
        """trainval as (train, val); val has the last num_val of the sorted identities."""
        pids = sorted({image.pid for image in self.trainval})
        if not 0 < num_val < len(pids):
            raise InputError(
                f"--num_val {num_val}: {self.name} has {len(pids)} training identities; "
                f"use 1 to {len(pids) - 1}, or --train_set trainval"
            )
        held = set(pids[-num_val:])
        train = [image for image in self.trainval if image.pid not in held]
        return train, [image for image in self.trainval if image.pid in held]

    def __str__(self) -> str:
        rows = dict(self.subsets)
        if self.distractors:
            rows["  distractors"] = [i for i in self.gallery if i.pid in self.distractors]
        cameras = f"{self.num_cameras} cameras" if not self.without_cameras else "no cameras"
        lines = [f"{self.name}: {cameras}, {self.protocol}"]
        lines.append(f"{'':<13}{'identities':>11}{'images':>10}{'cameras':>9}")
        for title, images in rows.items():
            pids, camids = {i.pid for i in images}, {i.camid for i in images}
            seen = str(len(camids)) if not self.without_cameras else "-"
            lines.append(f"{title:<13}{len(pids):>11,}{len(images):>10,}{seen:>9}")
        return "\n".join(lines)

    __repr__ = __str__


def content_of(images: Sequence[Image]) -> str:
    """Hex SHA-256 over the bytes of all files; it changes when an image is replaced under the same name."""
    total = hashlib.sha256()
    for image in images:
        with open(image.path, "rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()


def combine(datasets: Sequence[Dataset]) -> Dataset:
    """One dataset for joint training, in which identities and cameras stay distinct.

    Numbers of the second dataset follow those of the first, and so on; `hold_out` therefore
    takes identities of the last dataset.
    """
    if len(datasets) == 1:
        return datasets[0]
    lists: dict[str, list[Image]] = {subset: [] for subset in SUBSETS}
    distractors: set[int] = set()
    identities: list[str] = []
    cameras: list[str] = []
    for dataset in datasets:
        first_pid, first_camid = len(identities), len(cameras)
        for subset, images in dataset.subsets.items():
            lists[subset] += [Image(p, pid + first_pid, c + first_camid) for p, pid, c in images]
        distractors |= {pid + first_pid for pid in dataset.distractors}
        highest = max((pid for images in dataset.subsets.values() for _, pid, _ in images), default=-1)
        identities += [f"{dataset.name} {dataset.labels.identity(pid)}" for pid in range(highest + 1)]
        cameras += [f"{dataset.name} {dataset.labels.camera(c)}" for c in range(dataset.num_cameras)]
    return Dataset(
        name="+".join(dataset.name for dataset in datasets),
        folder=datasets[0].folder.parent,
        **lists,
        num_cameras=len(cameras),
        protocol=" + ".join(dataset.protocol for dataset in datasets),
        distractors=frozenset(distractors),
        labels=Labels(identities, cameras),
    )
