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
from reid.data.loader import ImageStore, choose_cache, in_threads, pixels_of, read, report_bad
from reid.data.prepare.labelled import assert_distinct
from reid.data.prepare.lists import LISTS as TABLES
from reid.data.prepare.lists import rows_of_list
from reid.data.prepare.plan import Row
from reid.data.records import Image
from reid.errors import InputError, MissingInput

logger = logging.getLogger(__name__)

LISTS = (".txt", ".tsv")  # a .tsv with a header is a table
UNKNOWN = "-1"  # label of an image without identity or camera


class Listed(NamedTuple):
    """Images that the user named, and the labels of their numbers."""

    images: list[Image]
    labels: Labels


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
    found: dict[str, Row] = {}
    for source in sources:
        rows, others = rows_of(source)
        if not rows:
            seen = f"; found {left_out(others)}" if others else ""
            raise InputError(f"--images {source}: no image there; expected {', '.join(IMAGES)}{seen}")
        if others:
            logger.info(f"{source}: left out, not images: {left_out(others)}")
        found |= {os.path.abspath(row.name): row for row in rows}
    labels = [row.pid for row in found.values()]
    places = [row.camera or UNKNOWN for row in found.values()]
    assert_distinct({*labels}, "identities")
    assert_distinct({*places}, "cameras")
    (pids, identities), (camids, cameras) = numbers_of(labels), numbers_of(places)
    images = [Image(row.name, pid, camid) for row, pid, camid in zip(found.values(), pids, camids)]
    return Listed(images, Labels(identities, cameras))


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


def rows_of(source: str) -> tuple[list[Row], list[str]]:
    """(images, names of other files) of one source."""
    path = Path(source)
    if path.is_file():
        if is_table(path):
            return [row._replace(name=str(path.parent / row.name)) for row in rows_of_list(path).rows], []
        return (read_list(path) if path.suffix.lower() in LISTS else [Row(source, UNKNOWN)]), []
    if not path.is_dir() and not glob.has_magic(source):
        raise MissingInput(f"--images {source}: no such folder, file or list")
    rows: list[Row] = []
    others: list[str] = []
    for match in map(Path, [source] if path.is_dir() else sorted(glob.glob(source, recursive=True))):
        folder, names = match.parent, [match.name]
        if match.is_dir():
            folder, names = match, sorted(files_below(match), key=lambda name: name.split("/"))
        rows += [Row(str(folder / name), UNKNOWN) for name in names if is_image(name)]
        others += [name for name in names if not is_image(name)]
    return rows, others


def is_table(path: Path) -> bool:
    """Whether a file is a list that `prepare folder` reads. A .tsv is one if its first line names a column path."""
    if path.suffix.lower() != ".tsv":
        return path.suffix.lower() in TABLES
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return "path" in file.readline().lower().split()


def read_list(path: Path) -> list[Row]:
    rows = []
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
        rows.append(Row(str(path.parent / name), pid, camid))
    return rows


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
    report_bad(bad, len(images), skip_bad)
    store = ImageStore(good, *size, num_workers, device=device)
    if cache != "none":
        store.keep(pixels[: len(good)], cache)
    return ReadImages(good, store, total.hexdigest())
