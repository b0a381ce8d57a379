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

from reid.data.loader import ImageStore, choose_cache, in_threads, pixels_of, read
from reid.data.prepare.archive import IMAGES
from reid.data.records import Image
from reid.errors import InputError, MissingInput

logger = logging.getLogger(__name__)

LISTS = (".txt", ".tsv")


def find_images(sources: Sequence[str]) -> list[Image]:
    """Images of folders (all below, sorted), patterns (sorted), lists and files, in the order of `sources`.

    A list is a .txt or .tsv file. Each line holds a path, relative to the list, and, where known, pid and camid after
    tabs. Unknown labels are -1. If an image is listed twice, its last labels are used.
    Raises MissingInput for a source that does not exist, InputError for one without images.
    """
    found: list[Image] = []
    for source in sources:
        images = images_of(source)
        if not images:
            raise InputError(f"--images {source}: no image there; expected {', '.join(IMAGES)}")
        found += images
    return list({os.path.abspath(image.path): image for image in found}.values())


def images_of(source: str) -> list[Image]:
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES and not p.is_dir())
        return [Image(str(p), -1, -1) for p in files]
    if path.is_file():
        return read_list(path) if path.suffix.lower() in LISTS else [Image(source, -1, -1)]
    if glob.has_magic(source):
        return [Image(p, -1, -1) for p in sorted(glob.glob(source, recursive=True)) if os.path.isfile(p)]
    raise MissingInput(f"--images {source}: no such folder, file or list")


def read_list(path: Path) -> list[Image]:
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
            pid, camid = [int(np.int64(int(x))) for x in labels] + [-1] * (2 - len(labels))
        except (ValueError, OverflowError) as e:
            expected = "'path', 'path TAB pid' or 'path TAB pid TAB camid'"
            raise InputError(f"{path}, line {number}: expected {expected}, got {line!r}") from e
        images.append(Image(str(path.parent / name), pid, camid))
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
