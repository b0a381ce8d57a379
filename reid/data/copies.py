"""Copies of an image among the images of a dataset: equal files, and files that look the same."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from reid.data.records import Dataset, Image

HASH_SIZE = 16  # a hash has 16 x 16 bits
# Bits in which the hashes of copies differ. Of the 19,281 test images of Market-1501, 400 copies each that were saved
# as JPEG of quality 30 to 90, halved or doubled differed in at most 14 bits; the closest images of two identities
# or cameras differ in more than 40.
MOST_BITS = 16
LEAST_BITS = 64  # a hash with fewer set bits is of a plain picture, and says nothing
BLOCK = 64  # rows of the table of distances that are computed at once


class Placed(NamedTuple):
    """An image and its subset."""

    image: Image
    subset: str


class Copy(NamedTuple):
    """An image that shows the same photo as an earlier one."""

    image: Placed
    first: Placed

    @property
    def leaks(self) -> bool:
        """Whether the test contains a training image."""
        return (self.image.subset == "trainval") != (self.first.subset == "trainval")

    @property
    def one_place(self) -> bool:
        """Whether both are of one identity and camera."""
        return self.image.image[1:] == self.first.image[1:]

    @property
    def weight(self) -> tuple[bool, bool, bool]:
        """How much it matters: most of training, then of another identity, then of another camera."""
        return self.leaks, self.image.image.pid != self.first.image.pid, not self.one_place


def placed(dataset: Dataset) -> list[Placed]:
    """Each image once, with its first subset."""
    found: dict[str, Placed] = {}
    for subset, images in dataset.subsets.items():
        for image in images:
            found.setdefault(image.path, Placed(image, subset))
    return list(found.values())


def equal_files(images: Sequence[Placed], digests: Mapping[str, str]) -> Iterator[Copy]:
    """Images whose file equals that of an earlier one. digests: of each path that can be read."""
    seen: dict[str, list[Placed]] = defaultdict(list)
    for placed in images:
        if digest := digests.get(placed.image.path):
            if copies := [Copy(placed, earlier) for earlier in seen[digest]]:
                yield max(copies, key=lambda copy: copy.weight)
            seen[digest].append(placed)


def find_hash() -> Callable[[PILImage.Image], bytes] | None:
    """The perceptual hash of an image, 32 bytes, or None where the package imagehash is not installed."""
    try:
        phash = import_module("imagehash").phash
    except ImportError:
        return None
    return lambda image: np.packbits(phash(image, hash_size=HASH_SIZE).hash).tobytes()


def similar_images(images: Sequence[Placed], looks: Mapping[str, bytes], digests: Mapping[str, str]) -> Iterator[Copy]:
    """Images that look like an earlier one of another identity or camera, and are not the same file.

    One camera sees a person in frames that hardly differ, so those of one identity and camera do not count.
    Compares all pairs, in blocks: 20,000 images take about 2 s.
    """
    bits = {path: int.from_bytes(look).bit_count() for path, look in looks.items()}
    known = [placed for placed in images if bits.get(placed.image.path, 0) >= LEAST_BITS]
    if not known:
        return
    words = np.array([np.frombuffer(looks[placed.image.path], np.uint64) for placed in known])  # (M, 4)
    # where two images agree in one row, they are of one identity and camera, or equal files
    places = np.unique([placed.image[1:] for placed in known], axis=0, return_inverse=True)[1].reshape(-1)
    files = np.unique([digests[placed.image.path] for placed in known], return_inverse=True)[1].reshape(-1)
    for start in tqdm(range(0, len(known), BLOCK), "comparing", unit=" blocks", disable=None):
        rows, columns = close_pairs(words, start)
        telling = (places[rows] != places[columns]) & (files[rows] != files[columns])
        rows, columns = rows[telling], columns[telling]
        for i in np.unique(rows, return_index=True)[1]:  # the first column of each row
            yield Copy(known[rows[i]], known[columns[i]])


def close_pairs(words: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the pairs of hashes that differ in at most MOST_BITS, columns < rows, by row.

    words: (M, 4) uint64. The rows are those of the block that begins at `start`.
    """
    block = words[start : start + BLOCK]
    end = start + len(block)
    bits = np.zeros((len(block), end), np.uint16)
    for word in range(words.shape[1]):
        bits += np.bitwise_count(block[:, word, None] ^ words[:end, word])
    rows, columns = np.nonzero(bits <= MOST_BITS)
    rows += start
    earlier = columns < rows
    return rows[earlier], columns[earlier]
