"""Rules that find defects in the lists of a dataset. Training runs them before the first step."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from reid.data.published import ENLARGED, differences
from reid.data.records import TEST_ONLY, Dataset, Image

NAME = re.compile(r"(\d+)_(\d+)_\d+\.\w+")  # pid, camera and number of the image
ONE_CAMERA = 0.8  # share of the queries, or of their matches, that is reported
FEW_QUERIES = 20  # of fewer the shares say nothing


class Finding(NamedTuple):
    """A defect of a dataset."""

    level: str  # "error": training or scores are wrong; "warning": to be looked at
    rule: str
    message: str  # names the file and the repair


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
    images = Counter(image.pid for image in dataset.trainval)
    if not images and TEST_ONLY not in dataset.protocol:
        what = "trainval is empty; the set can be evaluated but not trained on"
        yield Finding("warning", "identities", f"{dataset.folder}: {what}")
    elif len(images) == 1:
        yield Finding("error", "identities", f"{dataset.folder}: trainval has 1 identity; training needs at least 2")
    if set(images.values()) == {1}:
        return  # `pairs` reports all of them at once
    for path, pid, _ in dataset.trainval:
        if images[pid] == 1:
            what = f"is the only training image of {dataset.person(pid)}, so batches repeat it; add more"
            yield Finding("warning", "single", f"{dataset.file(path)} {what}")


def pairs(dataset: Dataset) -> Iterator[Finding]:
    """A training set in which nobody has two images, or nobody is seen by two cameras."""
    cameras = cameras_of(dataset.trainval)
    if not cameras:
        return
    what = ""
    if len(cameras) == len(dataset.trainval):
        what = "has two images, so training never sees two different images of one identity"
    elif max(map(len, cameras.values())) == 1 and not dataset.without_cameras:
        what = "is seen by two cameras, so training does not learn to match across cameras"
    if what:
        what = f"none of the {len(cameras):,} training identities {what}"
        yield Finding("warning", "pairs", f"{dataset.folder}: {what}; move such identities from the test to training")


def cameras_of(images: Iterable[Image]) -> dict[int, set[int]]:
    """The cameras of each identity."""
    cameras: dict[int, set[int]] = defaultdict(set)
    for image in images:
        cameras[image.pid].add(image.camid)
    return cameras


def names(dataset: Dataset) -> Iterator[Finding]:
    """Files whose name contains another identity or camera than the lists."""
    for path, *place in dict.fromkeys(i for images in dataset.subsets.values() for i in images):
        match = NAME.fullmatch(os.path.basename(path))
        if match and [int(match[1]), int(match[2])] != place:
            what = f"is listed as {dataset.person(place[0])}, {dataset.camera(place[1])}, unlike its name"
            yield Finding("warning", "name", f"{dataset.file(path)} {what}; correct meta.json or the name")


def repeated(dataset: Dataset) -> Iterator[Finding]:
    """Files that are listed several times in a test list."""
    for subset in ("query", "gallery"):
        for image, count in Counter(dataset.subsets[subset]).items():
            if count > 1:
                what = f"{dataset.file(image.path)} is listed {count} times in {subset}; list it once"
                yield Finding("warning", "twice", what)


def matches(dataset: Dataset) -> Iterator[Finding]:
    """Queries without a match from another camera; an error if no query has a match."""
    seen = {image.camid for image in (*dataset.query, *dataset.gallery)}
    if len(seen) == 1:
        what = f"all query and gallery images are from {dataset.camera(*seen)}; were cameras read from the names?"
        yield Finding("error", "cameras", f"{dataset.folder}: {what}")
    cameras = cameras_of(dataset.gallery)
    alone = [image for image in dataset.query if not cameras[image.pid] - {image.camid}]
    level = "error" if len(alone) == len(dataset.query) else "warning"
    for path, pid, camid in alone:
        what = f"query of {dataset.person(pid)} has no match from another camera than {dataset.camera(camid)[7:]}"
        yield Finding(level, "match", f"{dataset.file(path)}: {what}; add one or remove the query")


def camera_shares(dataset: Dataset) -> dict[str, tuple[int, float]]:
    """The camera of most "queries" and that of most "matches", with their shares.

    Empty without cameras and for a test without matches.
    """
    queries = Counter(image.camid for image in dataset.query)
    gallery: dict[int, Counter] = defaultdict(Counter)
    for image in dataset.gallery:
        gallery[image.pid][image.camid] += 1
    matches: Counter = Counter()
    for image in dataset.query:
        matches.update({camid: n for camid, n in gallery[image.pid].items() if camid != image.camid})
    if not matches or dataset.without_cameras:
        return {}
    sides = {"queries": queries, "matches": matches}
    return {what: (max(some, key=some.__getitem__), max(some.values()) / some.total()) for what, some in sides.items()}


def one_camera(dataset: Dataset) -> Iterator[Finding]:
    """A test whose queries, or whose matches, are nearly all from one camera."""
    if len(dataset.query) < FEW_QUERIES:
        return
    shares = camera_shares(dataset)
    if len({image.camid for image in (*dataset.query, *dataset.gallery)}) == 2:
        shares.pop("matches", None)  # of two cameras one has the queries and the other the matches
    for what, (camid, share) in shares.items():
        if share >= ONE_CAMERA:
            text = f"{share:.0%} of the {what} are from {dataset.camera(camid)}, so scores say little about the others"
            yield Finding("warning", "one camera", f"{dataset.folder}: {text}; draw the test from more cameras")
