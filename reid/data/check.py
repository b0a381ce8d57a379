"""What is wrong with a dataset, found before training.

`check_lists` looks at the lists alone and costs no time; train.py runs it before the first step. `check_images`
decodes every image and compares contents.
"""

import hashlib
import io
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image as PILImage
from tqdm import tqdm

from reid.data.loader import unusable
from reid.data.prepare.archive import IMAGES, MAX_IMAGE
from reid.data.prepare.plan import ENLARGED, PUBLISHED
from reid.data.records import SUBSETS, Dataset, Image
from reid.errors import InputError

MIN_SIDE = 16  # pixels; less than one cell of the map
NAME = re.compile(r"(\d+)_(\d+)_\d+\.\w+")


class Finding(NamedTuple):
    """An `error` makes training or scores wrong, a `warning` deserves a look. The message names file and repair."""

    level: str
    rule: str
    message: str


class Decoded(NamedTuple):
    """One image file: SHA-256 of its bytes, kind (JPEG, ...) and 'width x height', or what is wrong with it."""

    digest: str
    kind: str
    size: tuple[int, int]
    problem: str


def check_lists(dataset: Dataset) -> list[Finding]:
    """Findings in the lists of one dataset (before `combine`), without opening an image."""
    return [*counts(dataset), *people(dataset), *names(dataset), *matches(dataset)]


def counts(dataset: Dataset) -> Iterator[Finding]:
    """Known datasets whose counts are not the published ones."""
    for subset, (ids, images) in PUBLISHED.get(dataset.name, {}).items():
        here = getattr(dataset, subset, None)
        if here is None or (subset == "gallery" and ENLARGED in dataset.protocol):
            continue
        found = len({image.pid for image in here})
        if found != ids or images not in (None, len(here)):
            yield Finding("warning", "counts", f"{dataset.folder}: {subset} has {found:,} identities and {len(here):,} "
                          f"images, published are {ids:,}{f' and {images:,}' if images else ''} ({dataset.protocol}); "
                          "results cannot be compared. Prepare it from the original archive")  # fmt: skip


def people(dataset: Dataset) -> Iterator[Finding]:
    """Too few training identities, and those with one image."""
    images = Counter(image.pid for image in dataset.trainval)
    if len(images) < 2:
        what = f"trainval has {len(images)} identities; training needs at least 2"
        yield Finding("error", "identities", f"{dataset.folder}: {what}")
    for image in (image for image in dataset.trainval if images[image.pid] == 1):
        what = f"is the only training image of pid {image.pid} and is repeated in batches; add some"
        yield Finding("warning", "single", f"{image.path} {what}")


def names(dataset: Dataset) -> Iterator[Finding]:
    """Files whose name says another identity or camera than the lists, and files listed twice."""
    for image in dict.fromkeys((*dataset.trainval, *dataset.query, *dataset.gallery)):
        match = NAME.fullmatch(os.path.basename(image.path))
        if match and (int(match[1]), int(match[2])) != image[1:]:
            what = (
                f"is listed as pid {image.pid}, camera {image.camid}, against its name; correct meta.json or the name"
            )
            yield Finding("warning", "name", f"{image.path} {what}")
    for subset in ("query", "gallery"):
        for image, count in Counter(getattr(dataset, subset)).items():
            if count > 1:
                yield Finding("warning", "twice", f"{image.path} is listed {count} times in {subset}; list it once")


def matches(dataset: Dataset) -> Iterator[Finding]:
    """Queries without a gallery image of the same identity from another camera; an error when no query has one."""
    cameras: dict[int, set[int]] = defaultdict(set)
    for image in dataset.gallery:
        cameras[image.pid].add(image.camid)
    seen = {image.camid for image in (*dataset.query, *dataset.gallery)}
    if len(seen) == 1:
        what = f"all query and gallery images are of camera {seen.pop()}; were cameras not read from the names?"
        yield Finding("error", "cameras", f"{dataset.folder}: {what}")
    alone = [image for image in dataset.query if not cameras[image.pid] - {image.camid}]
    level = "error" if len(alone) == len(dataset.query) else "warning"
    for image in alone:
        what = f"query of pid {image.pid} has no match from another camera than {image.camid}; add one or take it out"
        yield Finding(level, "match", f"{image.path}: {what}")


def examine(path: str) -> Decoded:
    """Reads and decodes one image file completely."""
    digest = ""
    try:
        if os.path.getsize(path) > MAX_IMAGE:
            raise InputError(f"has {os.path.getsize(path):,} bytes, too many for an image of a person")
        content = Path(path).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if not content:
            raise InputError("is empty")
        with PILImage.open(io.BytesIO(content)) as image:
            if wrong := unusable(image):
                raise InputError(wrong)
            image.load()
            return Decoded(digest, image.format or "", image.size, "")
    except PILImage.UnidentifiedImageError:
        return Decoded(digest, "", (0, 0), f"is no image; it begins with {content[:16]!r}")
    except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others for bad files
        return Decoded(digest, "", (0, 0), str(e) if isinstance(e, InputError) else f"is damaged: {e}")


def check_images(dataset: Dataset) -> tuple[list[Finding], dict[str, Decoded]]:
    """Findings in the image files, and what was read of each path. Decodes all of them, in threads."""
    paths = sorted({image.path for subset in SUBSETS for image in getattr(dataset, subset)})
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # Pillow's remarks about metadata
        read = dict(zip(paths, tqdm(pool.map(examine, paths), "decoding", len(paths), unit=" images", disable=None)))
    return [*files(dataset, read), *duplicates(dataset, read)], read


def files(dataset: Dataset, read: dict[str, Decoded]) -> Iterator[Finding]:
    """Images that cannot be read or show nothing, and files of images/ that no list has."""
    for path, result in read.items():
        if result.problem:
            what = f"{path} {result.problem}; replace it or take it out of the lists"
            yield Finding("error", "unreadable", what)
        elif min(result.size) < MIN_SIDE:
            what = f"{path} has {result.size[0]} x {result.size[1]} pixels, too few to show a person; take it out"
            yield Finding("warning", "small", what)
    for folder, _, found in os.walk(dataset.folder / "images", followlinks=True):
        for path in sorted(os.path.join(folder, file) for file in found):
            if path not in read:
                what = "is in no list of this split" if path.lower().endswith(IMAGES) else "is no image"
                yield Finding("warning", "unlisted", f"{path} {what}; list it or delete it")


def duplicates(dataset: Dataset, read: dict[str, Decoded]) -> Iterator[Finding]:
    """Equal files that stand in training and test, or show two identities."""
    groups: dict[str, dict[Image, str]] = defaultdict(dict)
    for subset in SUBSETS:
        for image in getattr(dataset, subset):
            if not read[image.path].problem:
                groups[read[image.path].digest].setdefault(image, subset)
    for images in groups.values():
        (first, subset), *others = images.items()
        for image, other in others:
            same = (
                f"{image.path} ({other}, pid {image.pid}) has the content of {first.path} ({subset}, pid {first.pid})"
            )
            if (subset == "trainval") != (other == "trainval"):
                yield Finding("error", "leak", f"{same}: a training image in the test; take one out")
            elif image.pid != first.pid:
                yield Finding("error", "duplicate", f"{same}: one image shows one person; take one out")
