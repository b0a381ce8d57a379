"""Images named on the command line: folders, patterns, lists and files."""

import glob
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from reid.data.folders import IMAGES, files_below, is_image, left_out
from reid.data.labels import Labels
from reid.data.loader import ImageStore, choose_cache, in_threads, pixels_of, read
from reid.data.prepare.labelled import assert_distinct
from reid.data.prepare.lists import LISTS as TABLES
from reid.data.prepare.lists import rows_of_list
from reid.data.records import Image
from reid.errors import InputError, MissingInput

logger = logging.getLogger(__name__)

LISTS = (".txt", ".tsv")  # a .tsv with a header is a table
UNKNOWN = "-1"  # label of an image without identity or camera


class Listed(NamedTuple):
    """Images that the user named, and the labels of their numbers."""

    images: list[Image]
    labels: Labels


class Found(NamedTuple):
    """An image with its labels as the user wrote them."""

    path: str
    pid: str = UNKNOWN
    camid: str = UNKNOWN


def find_images(sources: Sequence[str]) -> list[Image]:
    """The images of `list_images`, with numbers alone."""
    return list_images(sources).images


def list_images(sources: Sequence[str]) -> Listed:
    """Images of folders (all below, sorted), patterns (sorted), lists and files, in the order of `sources`.

    A list is a .txt or .tsv file. Each line holds a path, relative to the list, and, where known, pid and camid after
    tabs. A table (.csv, .tsv, .json) is read as `prepare folder` reads it. Whole numbers are pids and camids as they
    are; other labels are numbered in order. Unknown labels are -1. If an image is listed twice, its last labels are
    used. Files of folders and patterns without the suffix of an image are left out and logged.
    Raises MissingInput for a source that does not exist, InputError for one without images and for labels that look
    the same.
    """
    found: dict[str, Found] = {}
    for source in sources:
        images, others = images_of(source)
        if not images:
            seen = f"; found {left_out(others)}" if others else ""
            raise InputError(f"--images {source}: no image there; expected {', '.join(IMAGES)}{seen}")
        if others:
            logger.info(f"{source}: left out, not images: {left_out(others)}")
        found |= {os.path.abspath(image.path): image for image in images}
    assert_distinct({image.pid for image in found.values()}, "identities")
    assert_distinct({image.camid for image in found.values()}, "cameras")
    pids, identities = numbers_of([image.pid for image in found.values()])
    camids, cameras = numbers_of([image.camid for image in found.values()])
    rows = zip(found.values(), pids, camids)
    return Listed([Image(image.path, pid, camid) for image, pid, camid in rows], Labels(identities, cameras))


def numbers_of(labels: Sequence[str]) -> tuple[list[int], list[str]]:
    """(the number of each label, the label of each number); the latter is empty for whole numbers."""
    if all(map(is_number, labels)):
        return [int(label) for label in labels], []
    numbers = {label: i for i, label in enumerate(sorted({*labels} - {UNKNOWN}))}
    return [numbers.get(label, -1) for label in labels], list(numbers)


def is_number(label: str) -> bool:
    """Whether a label is a whole number of 64 bits in its usual form."""
    try:
        return str(np.int64(int(label))) == label
    except (ValueError, OverflowError):
        return False


def images_of(source: str) -> tuple[list[Found], list[str]]:
    """(images, names of other files) of one source."""
    path = Path(source)
    if path.is_dir():
        return images_below(path)
    if path.is_file():
        if is_table(path):
            return [Found(str(path.parent / r.name), r.pid, r.camera or UNKNOWN) for r in rows_of_list(path).rows], []
        return (read_list(path) if path.suffix.lower() in LISTS else [Found(source)]), []
    if glob.has_magic(source):
        return images_matching(source)
    raise MissingInput(f"--images {source}: no such folder, file or list")


def images_below(folder: Path) -> tuple[list[Found], list[str]]:
    names = sorted(files_below(folder), key=lambda name: name.split("/"))
    images = [Found(str(folder / name)) for name in names if is_image(name)]
    return images, [name for name in names if not is_image(name)]


def images_matching(pattern: str) -> tuple[list[Found], list[str]]:
    """The images that match a pattern, and those below the folders that do."""
    images: list[Found] = []
    others: list[str] = []
    for match in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isdir(match):
            inside, rest = images_below(Path(match))
            images += inside
            others += rest
        elif is_image(match):
            images.append(Found(match))
        else:
            others.append(match)
    return images, others


def is_table(path: Path) -> bool:
    """Whether a file is a list that `prepare folder` reads. A .tsv is one if its first line names a column path."""
    if path.suffix.lower() != ".tsv":
        return path.suffix.lower() in TABLES
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return "path" in file.readline().lower().split()


def read_list(path: Path) -> list[Found]:
    images = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not a list of images: {e}") from e
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *labels = line.split("\t")
        try:
            pid, camid = [str(np.int64(int(x))) for x in labels] + [UNKNOWN] * (2 - len(labels))
        except (ValueError, OverflowError) as e:
            expected = "'path', 'path TAB pid' or 'path TAB pid TAB camid'"
            raise InputError(f"{path}, line {number}: expected {expected}, got {line!r}") from e
        images.append(Found(str(path.parent / name), pid, camid))
    return images


class ReadImages(NamedTuple):
    """Images that can be read, and their pixels."""

    images: list[Image]
    store: ImageStore
    content: str  # hex SHA-256 over the SHA-256 of each file


def read_images(
    images: Sequence[Image], size: tuple[int, int], num_workers: int = 4, device="cpu", skip_bad: bool = False
) -> ReadImages:
    """Opens and decodes each file once, and logs those that cannot be read.

    The pixels are kept if they fit into memory (cache auto of ImageStore); otherwise they are decoded again later.
    Raises InputError when a file cannot be read and skip_bad is not given, or when none can.
    """
    device = torch.device(device)
    cache = choose_cache("auto", len(images), size, device)
    pixels = np.empty((len(images) if cache != "none" else 0, *size, 3), np.uint8)

    def load(image: Image) -> tuple[bytes, np.ndarray] | InputError:
        try:
            content = read(image.path)
            return hashlib.sha256(content).digest(), pixels_of(content, image.path, *size)
        except InputError as e:
            return e

    total = hashlib.sha256()
    good: list[Image] = []
    bad: list[str] = []
    found = in_threads(load, images, num_workers)
    for image, result in zip(images, tqdm(found, "reading", len(images), unit=" images", disable=None)):
        if isinstance(result, InputError):
            bad.append(str(result))
            continue
        total.update(result[0])
        if cache != "none":
            pixels[len(good)] = result[1]
        good.append(image)
    for line in bad:
        logger.warning(line)
    if not good:
        raise InputError(f"none of the {len(images)} images can be read")
    if bad and not skip_bad:
        raise InputError(
            f"{len(bad)} of {len(images)} images cannot be read (listed above); nothing was written. "
            "Repair them, or leave them out with --skip_bad"
        )
    store = ImageStore(good, *size, num_workers, device=device)
    if cache != "none":
        store.keep(pixels[: len(good)], cache)
    return ReadImages(good, store, total.hexdigest())
