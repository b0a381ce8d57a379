"""Rules that find defects in the lists of a dataset. Training runs them before the first step."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reid.data.labels import Labels
from reid.data.published import ENLARGED, differences
from reid.data.records import TEST_ONLY, Dataset

NAME = re.compile(r"(\d+)_(\d+)_\d+\.\w+")  # pid, camera and number of the image
ONE_CAMERA = 0.8  # share of the queries, or of their matches, that is reported
FEW_QUERIES = 20  # of fewer the shares say nothing


class Finding(NamedTuple):
    """A defect of a dataset."""

    level: str  # "error": training or scores are wrong; "warning": to be looked at
    rule: str
    message: str  # names the file and the repair


@dataclass(frozen=True)
class Names:
    """How messages name the files, identities and cameras of a dataset: with the user's labels."""

    folder: Path
    labels: Labels

    @classmethod
    def of(cls, dataset: Dataset) -> "Names":
        return cls(dataset.folder / "images", dataset.labels)

    def source(self, path: str) -> str:
        """The original name of a file in images/, or ""."""
        file = os.path.relpath(path, self.folder).replace(os.sep, "/")
        source = self.labels.source(file)
        return "" if source == file else source

    def file(self, path: str) -> str:
        source = self.source(path)
        return f"{path} ({source})" if source else path

    def person(self, pid: int) -> str:
        label = self.labels.identity(pid)
        return f"pid {pid}" if label == str(pid) else f"identity {label} (pid {pid})"

    def camera(self, camid: int) -> str:
        label = self.labels.camera(camid)
        return f"camera {camid}" if label == str(camid) else f"camera {label} (number {camid})"


def check_lists(dataset: Dataset) -> list[Finding]:
    """Findings in the lists of one dataset, before `combine`."""
    rules = (counts, people, pairs, names, repeated, matches, one_camera)
    return [finding for rule in rules for finding in rule(dataset)]


def counts(dataset: Dataset) -> Iterator[Finding]:
    """Known datasets whose counts are not the published ones."""
    here = {s: (len({i.pid for i in images}), len(images)) for s, images in dataset.subsets.items()}
    if ENLARGED in dataset.protocol:
        del here["gallery"]
    for difference in differences(dataset.name, here):
        what = f"{dataset.folder}: {difference} ({dataset.protocol}); results cannot be compared"
        yield Finding("warning", "counts", f"{what}. Prepare it from the original archive")


def people(dataset: Dataset) -> Iterator[Finding]:
    """Too few training identities, and identities with one image."""
    images, named = Counter(image.pid for image in dataset.trainval), Names.of(dataset)
    if not images and TEST_ONLY in dataset.protocol:
        return
    if not images:
        what = "trainval is empty; the set can be evaluated but not trained on"
        yield Finding("warning", "identities", f"{dataset.folder}: {what}")
    elif len(images) < 2:
        yield Finding("error", "identities", f"{dataset.folder}: trainval has 1 identity; training needs at least 2")
    if set(images.values()) == {1}:
        return  # `pairs` reports all of them at once
    for path, pid, _ in dataset.trainval:
        if images[pid] == 1:
            what = f"is the only training image of {named.person(pid)}, so batches repeat it; add more"
            yield Finding("warning", "single", f"{named.file(path)} {what}")


def pairs(dataset: Dataset) -> Iterator[Finding]:
    """A training set in which nobody has two images, or nobody is seen by two cameras."""
    images: Counter = Counter()
    cameras: dict[int, set[int]] = defaultdict(set)
    for _, pid, camid in dataset.trainval:
        images[pid] += 1
        cameras[pid].add(camid)
    if not images:
        return
    what = ""
    if max(images.values()) == 1:
        what = "has two images, so training never sees two different images of one identity"
    elif max(map(len, cameras.values())) == 1 and not dataset.without_cameras:
        what = "is seen by two cameras, so training does not learn to match across cameras"
    if what:
        what = f"none of the {len(images):,} training identities {what}"
        yield Finding("warning", "pairs", f"{dataset.folder}: {what}; move such identities from the test to training")


def names(dataset: Dataset) -> Iterator[Finding]:
    """Files whose name contains another identity or camera than the lists."""
    named = Names.of(dataset)
    for path, *place in dict.fromkeys(i for images in dataset.subsets.values() for i in images):
        match = NAME.fullmatch(os.path.basename(path))
        if match and [int(match[1]), int(match[2])] != place:
            what = f"is listed as {named.person(place[0])}, {named.camera(place[1])}, unlike its name"
            yield Finding("warning", "name", f"{named.file(path)} {what}; correct meta.json or the name")


def repeated(dataset: Dataset) -> Iterator[Finding]:
    """Files that are listed several times in a test list."""
    named = Names.of(dataset)
    for subset in ("query", "gallery"):
        for image, count in Counter(dataset.subsets[subset]).items():
            if count > 1:
                what = f"{named.file(image.path)} is listed {count} times in {subset}; list it once"
                yield Finding("warning", "twice", what)


def matches(dataset: Dataset) -> Iterator[Finding]:
    """Queries without a match from another camera; an error if no query has a match."""
    named = Names.of(dataset)
    cameras: dict[int, set[int]] = defaultdict(set)
    for image in dataset.gallery:
        cameras[image.pid].add(image.camid)
    seen = {image.camid for image in (*dataset.query, *dataset.gallery)}
    if len(seen) == 1:
        what = f"all query and gallery images are from {named.camera(seen.pop())}; were cameras read from the names?"
        yield Finding("error", "cameras", f"{dataset.folder}: {what}")
    alone = [image for image in dataset.query if not cameras[image.pid] - {image.camid}]
    level = "error" if len(alone) == len(dataset.query) else "warning"
    for path, pid, camid in alone:
        what = f"query of {named.person(pid)} has no match from another camera than {named.camera(camid)[7:]}"
        yield Finding(level, "match", f"{named.file(path)}: {what}; add one or remove the query")


class Shares(NamedTuple):
    """The camera of most queries and that of most of their matches, with their shares."""

    query: tuple[int, float]
    match: tuple[int, float]


def camera_shares(dataset: Dataset) -> Shares | None:
    """How much of the test rests on one camera; None for a test without matches."""
    queries = Counter(image.camid for image in dataset.query)
    gallery: dict[int, Counter] = defaultdict(Counter)
    for image in dataset.gallery:
        gallery[image.pid][image.camid] += 1
    matches: Counter = Counter()
    for image in dataset.query:
        matches.update({camid: n for camid, n in gallery[image.pid].items() if camid != image.camid})
    if not matches:
        return None
    (query, n), (match, m) = queries.most_common(1)[0], matches.most_common(1)[0]
    return Shares((query, n / queries.total()), (match, m / matches.total()))


def one_camera(dataset: Dataset) -> Iterator[Finding]:
    """A test whose queries, or whose matches, are nearly all from one camera."""
    shares = camera_shares(dataset)
    if shares is None or dataset.without_cameras or len(dataset.query) < FEW_QUERIES:
        return
    named, cameras = Names.of(dataset), {image.camid for image in (*dataset.query, *dataset.gallery)}
    sides = [("queries", shares.query)]
    if len(cameras) > 2:  # of two cameras one has the queries and the other the matches
        sides.append(("matches", shares.match))
    for what, (camid, share) in sides:
        if share >= ONE_CAMERA:
            text = f"{share:.0%} of the {what} are from {named.camera(camid)}, so scores say little about the others"
            yield Finding("warning", "one camera", f"{dataset.folder}: {text}; draw the test from more cameras")
