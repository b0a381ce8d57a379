"""Rules that find defects in the image files of a dataset: damaged ones, files without a list, copies."""

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image as PILImage
from tqdm import tqdm

from reid.data.check import Finding
from reid.data.copies import Copy, Placed, equal_files, find_hash, placed, similar_images
from reid.data.folders import is_image
from reid.data.loader import open_image
from reid.data.prepare.archive import MAX_IMAGE
from reid.data.records import Dataset
from reid.errors import InputError

logger = logging.getLogger(__name__)

MIN_SIDE = 16  # pixels; less than one cell of the feature map


class Decoded(NamedTuple):
    """What was read of one image file, or the problem with it."""

    digest: str  # SHA-256 of the bytes
    kind: str = ""  # JPEG, PNG, ...
    size: tuple[int, int] = (0, 0)  # width, height
    problem: str = ""
    look: bytes = b""  # perceptual hash


class Examined(NamedTuple):
    """The findings in the image files, what was read of each path, and the copies among them."""

    findings: list[Finding]
    read: dict[str, Decoded]
    copies: list[Copy]


def check_images(dataset: Dataset) -> Examined:
    """Decodes every image of a dataset, and compares the contents."""
    images, look_of = placed(dataset), find_hash()
    if look_of is None:
        logger.warning("near-duplicates are not searched for: pip install imagehash, or rrid[check]")
    paths = sorted(placed.image.path for placed in images)
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # Pillow warns about metadata
        results = pool.map(partial(examine, look_of=look_of), paths)
        read = dict(zip(paths, tqdm(results, "decoding", len(paths), unit=" images", disable=None)))
    digests = {path: result.digest for path, result in read.items() if not result.problem}
    equal = list(equal_files(images, digests))
    similar = list(similar_images(images, {path: result.look for path, result in read.items()}, digests))
    found = [*unreadable(dataset, read), *unlisted(dataset, read), *duplicates(dataset, equal)]
    return Examined([*found, *near_duplicates(dataset, similar)], read, [*equal, *similar])


def examine(path: str, look_of: Callable[[PILImage.Image], bytes] | None) -> Decoded:
    """Reads and decodes one image file completely."""
    digest = ""
    try:
        if (size := os.path.getsize(path)) > MAX_IMAGE:
            raise InputError(f"has {size:,} bytes, too many for a cropped image")
        content = Path(path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        image = open_image(content)
        return Decoded(digest, image.format or "", image.size, look=look_of(image) if look_of else b"")
    except (InputError, OSError) as e:
        return Decoded(digest, problem=str(e) if isinstance(e, InputError) else f"cannot be read: {e}")


def unreadable(dataset: Dataset, read: dict[str, Decoded]) -> Iterator[Finding]:
    """Images that cannot be decoded, or are too small to show anything."""
    for path, result in read.items():
        if result.problem:
            what = f"{dataset.file(path)} {result.problem}; replace it or take it out of the lists"
            yield Finding("error", "unreadable", what)
        elif min(result.size) < MIN_SIDE:
            what = "{} has {} x {} pixels, too few to show anything; take it out of the lists"
            yield Finding("warning", "small", what.format(dataset.file(path), *result.size))


def unlisted(dataset: Dataset, read: dict[str, Decoded]) -> Iterator[Finding]:
    """Files below images/ that are in none of the lists."""
    listed = {os.path.normcase(os.path.normpath(path)) for path in read}
    for folder, _, found in os.walk(dataset.folder / "images", followlinks=True):
        for path in sorted(os.path.join(folder, file) for file in found):
            if os.path.normcase(os.path.normpath(path)) not in listed:
                what = "is in no list of this split" if is_image(path) else "is not an image"
                yield Finding("warning", "unlisted", f"{path} {what}; list it or delete it")


def duplicates(dataset: Dataset, equal: Iterable[Copy]) -> Iterator[Finding]:
    """Equal files: an error where they are in both training and test, show two identities, or answer a query."""
    for copy in equal:
        image, first = copy.image, copy.first
        what = f"{described(dataset, image)} has the content of {described(dataset, first)}"
        source = dataset.source(image.image.path)
        if copy.leaks:
            yield Finding("error", "leak", f"{what}: a training image is in the test; remove one")
        elif image.image.pid != first.image.pid:
            yield Finding("error", "duplicate", f"{what}: one image has two identities; remove one")
        elif {image.subset, first.subset} == {"query", "gallery"} and not copy.one_place:
            yield Finding("error", "copy", f"{what}: a query is its own match; remove one")
        elif source and source == dataset.source(first.image.path):
            yield Finding("warning", "copy", f"{what}: the source is listed twice; remove one entry")
        else:
            yield Finding("warning", "copy", f"{what}: it counts twice; remove one")


def near_duplicates(dataset: Dataset, similar: Iterable[Copy]) -> Iterator[Finding]:
    """Images that look the same, for example because one was resized or saved again."""
    for copy in similar:
        what = f"{described(dataset, copy.image)} looks like {described(dataset, copy.first)}"
        if copy.leaks:
            what += ": training and test may share a photo"
        yield Finding("warning", "similar", f"{what}; look at both (--pictures FILE) and remove a copy")


def described(dataset: Dataset, placed: Placed) -> str:
    path, pid, camid = placed.image
    return f"{dataset.file(path)} ({placed.subset}, {dataset.person(pid)}, {dataset.camera(camid)})"
