"""Rules that find defects of a dataset before training.

`check_lists` opens no image; training runs it before the first step. `check_images` decodes
every image and compares the contents.
"""

import hashlib
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from reid.data.folders import is_image
from reid.data.loader import open_image
from reid.data.prepare.archive import MAX_IMAGE
from reid.data.published import ENLARGED, differences
from reid.data.records import Dataset, Image
from reid.errors import InputError

MIN_SIDE = 16  # pixels; less than one cell of the feature map
NAME = re.compile(r"(\d+)_(\d+)_\d+\.\w+")  # pid, camera and number of the image


class Finding(NamedTuple):
    """A defect of a dataset."""

    level: str  # "error": training or scores are wrong; "warning": to be looked at
    rule: str
    message: str  # names the file and the repair


class Decoded(NamedTuple):
    """What was read of one image file, or the problem with it."""

    digest: str  # SHA-256 of the bytes
    kind: str = ""  # JPEG, PNG, ...
    size: tuple[int, int] = (0, 0)  # width, height
    problem: str = ""


def check_lists(dataset: Dataset) -> list[Finding]:
    """Findings in the lists of one dataset, before `combine`."""
    rules = (counts, people, names, repeated, matches)
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
    if len(images) < 2:
        what = f"trainval has {len(images)} identities; training needs at least 2"
        yield Finding("error", "identities", f"{dataset.folder}: {what}")
    for path, pid, _ in dataset.trainval:
        if images[pid] == 1:
            what = f"is the only training image of pid {pid}, so batches repeat it; add more"
            yield Finding("warning", "single", f"{path} {what}")


def names(dataset: Dataset) -> Iterator[Finding]:
    """Files whose name contains another identity or camera than the lists."""
    for path, *place in dict.fromkeys(i for images in dataset.subsets.values() for i in images):
        match = NAME.fullmatch(os.path.basename(path))
        if match and [int(match[1]), int(match[2])] != place:
            what = "is listed as pid {}, camera {}, unlike its name".format(*place)
            yield Finding("warning", "name", f"{path} {what}; correct meta.json or the name")


def repeated(dataset: Dataset) -> Iterator[Finding]:
    """Files that are listed several times in a test list."""
    for subset in ("query", "gallery"):
        for image, count in Counter(dataset.subsets[subset]).items():
            if count > 1:
                what = f"{image.path} is listed {count} times in {subset}; list it once"
                yield Finding("warning", "twice", what)


def matches(dataset: Dataset) -> Iterator[Finding]:
    """Queries without a match from another camera; an error if no query has a match."""
    cameras: dict[int, set[int]] = defaultdict(set)
    for image in dataset.gallery:
        cameras[image.pid].add(image.camid)
    seen = {image.camid for image in (*dataset.query, *dataset.gallery)}
    if len(seen) == 1:
        what = f"all query and gallery images are from camera {seen.pop()}; were cameras read from the names?"
        yield Finding("error", "cameras", f"{dataset.folder}: {what}")
    alone = [image for image in dataset.query if not cameras[image.pid] - {image.camid}]
    level = "error" if len(alone) == len(dataset.query) else "warning"
    for path, pid, camid in alone:
        what = f"query of pid {pid} has no match from another camera than {camid}"
        yield Finding(level, "match", f"{path}: {what}; add one or remove the query")


def check_images(dataset: Dataset) -> tuple[list[Finding], dict[str, Decoded]]:
    """Findings in the image files, and what was read of each path."""
    paths = sorted({image.path for images in dataset.subsets.values() for image in images})
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # Pillow warns about metadata
        results = tqdm(pool.map(examine, paths), "decoding", len(paths), unit=" images", disable=None)
        read = dict(zip(paths, results))
    return [*unreadable(read), *unlisted(dataset, read), *duplicates(dataset, read)], read


def examine(path: str) -> Decoded:
    """Reads and decodes one image file completely."""
    digest = ""
    try:
        if (size := os.path.getsize(path)) > MAX_IMAGE:
            raise InputError(f"has {size:,} bytes, too many for an image of a person")
        content = Path(path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        image = open_image(content)
        return Decoded(digest, image.format or "", image.size)
    except InputError as e:
        problem = str(e)
    except OSError as e:
        problem = f"cannot be read: {e}"
    return Decoded(digest, problem=problem)


def unreadable(read: dict[str, Decoded]) -> Iterator[Finding]:
    """Images that cannot be decoded, or are too small to show a person."""
    for path, result in read.items():
        if result.problem:
            what = f"{path} {result.problem}; replace it or take it out of the lists"
            yield Finding("error", "unreadable", what)
        elif min(result.size) < MIN_SIDE:
            what = "{} has {} x {} pixels, too few to show a person; take it out of the lists"
            yield Finding("warning", "small", what.format(path, *result.size))


def unlisted(dataset: Dataset, read: dict[str, Decoded]) -> Iterator[Finding]:
    """Files below images/ that are in none of the lists."""
    listed = {os.path.normcase(os.path.normpath(path)) for path in read}
    for folder, _, found in os.walk(dataset.folder / "images", followlinks=True):
        for path in sorted(os.path.join(folder, file) for file in found):
            if os.path.normcase(os.path.normpath(path)) not in listed:
                listable = is_image(path)
                what = "is in no list of this split" if listable else "is not an image"
                yield Finding("warning", "unlisted", f"{path} {what}; list it or delete it")


def duplicates(dataset: Dataset, read: dict[str, Decoded]) -> Iterator[Finding]:
    """Equal files that are in both training and test, or show two identities."""
    groups: dict[str, dict[Image, str]] = defaultdict(dict)  # digest -> {image: subset}
    for subset, images in dataset.subsets.items():
        for image in images:
            if not read[image.path].problem:
                groups[read[image.path].digest].setdefault(image, subset)
    for group in groups.values():
        (first, subset), *others = group.items()
        for image, other in others:
            what = f"{image.path} ({other}, pid {image.pid}) has the content of "
            what += f"{first.path} ({subset}, pid {first.pid})"
            if (subset == "trainval") != (other == "trainval"):
                yield Finding("error", "leak", f"{what}: a training image is in the test; remove one")
            elif image.pid != first.pid:
                yield Finding("error", "duplicate", f"{what}: one image has two identities; remove one")
