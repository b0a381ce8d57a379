"""Images named on the command line: folders, patterns, lists and files."""

import glob
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reid.data.loader import decode
from reid.data.prepare.archive import IMAGES
from reid.data.records import Image
from reid.errors import InputError, MissingInput

logger = logging.getLogger(__name__)

LISTS = (".txt", ".tsv")


def find_images(sources: Sequence[str]) -> list[Image]:
    """Images of folders (all below, sorted), patterns (sorted), lists and files, in the order of `sources`.

    A list is a .txt or .tsv file: in each line a path, relative to the list, and where known pid and camid after tabs;
    elsewhere both are -1. Raises MissingInput for what is not there, InputError for what holds no image.
    """
    found: list[Image] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES and not p.is_dir())
            images = [Image(str(p), -1, -1) for p in files]
        elif path.is_file():
            images = read_list(path) if path.suffix.lower() in LISTS else [Image(source, -1, -1)]
        elif glob.has_magic(source):
            images = [Image(p, -1, -1) for p in sorted(glob.glob(source, recursive=True)) if os.path.isfile(p)]
        else:
            raise MissingInput(f"--images {source}: no such folder, file or list")
        if not images:
            raise InputError(f"--images {source}: no image there; expected {', '.join(IMAGES)}")
        found += images
    return list({os.path.abspath(image.path): image for image in found}.values())


def read_list(path: Path) -> list[Image]:
    images = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is no list of images: {e}") from e
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *labels = line.split("\t")
        try:
            pid, camid = [int(np.int64(int(x))) for x in labels] + [-1] * (2 - len(labels))
        except (ValueError, OverflowError) as e:
            raise InputError(f"{path}, line {number}: expected 'path', 'path TAB pid' or 'path TAB pid TAB camid', got "
                             f"{line!r}") from e  # fmt: skip
        images.append(Image(str(path.parent / name), pid, camid))
    return images


def readable(images: list[Image], size: tuple[int, int], num_workers: int, skip_bad: bool) -> list[Image]:
    """The images that can be decoded; the others are listed on stderr.

    Raises InputError when there are such and skip_bad is not given, or when none is left.
    """

    def problem(image: Image) -> str | None:
        try:
            decode(image.path, *size)
        except InputError as e:
            return str(e)
        return None

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        bar = tqdm(pool.map(problem, images), "checking", len(images), unit=" images", disable=None)
        problems = list(bar)
    bad = [p for p in problems if p]
    if bad:
        for line in bad:
            logger.warning(line)
    if bad and not skip_bad:
        raise InputError(f"{len(bad)} of {len(images)} images cannot be read (listed above); nothing was written. "
                         "Repair them, or leave them out with --skip_bad")  # fmt: skip
    if len(bad) == len(images):
        raise InputError(f"none of the {len(images)} images can be read")
    return [image for image, p in zip(images, problems) if not p]
