"""From files to batches of uint8 pixels on the device, decoded once and cached, or decoded when needed.

Decoding runs in threads: Pillow releases the GIL, and threads need no copies between processes. An image that
cannot be read raises InputError with its name.
"""

import io
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import ExifTags, ImageOps, UnidentifiedImageError
from PIL import Image as PILImage
from torch import Tensor
from tqdm import tqdm

from reid.data.records import Image
from reid.device import Hardware
from reid.errors import InputError, MissingInput

logger = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000  # a crop is far smaller; a larger header is damage or a decompression bomb
AHEAD = 128  # images that are decoded before they are needed
TURNED = (5, 6, 7, 8)  # EXIF orientations of an image that is turned by a quarter
LOOKED_AT = 200  # images whose shapes represent a dataset
FAR = 2  # an input whose aspect ratio differs from the images' by more than this factor


def unusable(image: PILImage.Image, most: int) -> str:
    """Why an opened image cannot be used, or "". most: pixels."""
    if image.width * image.height > most:
        return f"has {image.width} x {image.height} pixels, too many for a cropped image"
    if image.mode[0] in "IF":
        return f"has more than 8 bits per channel (mode {image.mode}) and an unknown range; convert it to 8 bits"
    return ""


def decode(path: str, height: int, width: int) -> np.ndarray:
    """RGB pixels (height, width, 3) uint8 of a file, resized by Pillow's bilinear filter (with antialias).

    Raises MissingInput, or InputError when the file is not an image, is damaged, has more than MAX_PIXELS pixels or
    more than 8 bits per channel, or when its name is not text.
    """
    return pixels_of(read(path), path, height, width)


def read(path: str) -> bytes:
    """The content of an image file. Raises MissingInput, InputError."""
    try:
        path.encode()
        return Path(path).read_bytes()
    except UnicodeEncodeError as e:
        raise InputError(f"image {path!r}: its name is not UTF-8 text; rename it") from e
    except FileNotFoundError as e:
        raise MissingInput(f"image {path} does not exist; was it moved after the dataset was prepared?") from e
    except (OSError, ValueError, MemoryError) as e:
        raise InputError(f"{path} cannot be read: {e}") from e


def pixels_of(content: bytes, path: str, height: int, width: int) -> np.ndarray:
    """`decode` of a file's content; `path` is for messages."""
    try:
        return resized(open_image(content).convert("RGB"), height, width)
    except InputError as e:
        raise InputError(f"{path} {e}; replace it, or take it out of the lists") from e
    except Exception as e:  # a damaged palette is noticed when it is converted
        raise InputError(f"{path} is damaged: {e}; replace it, or take it out of the lists") from e


def open_image(content: bytes, most: int = MAX_PIXELS, formats: tuple[str, ...] | None = None) -> PILImage.Image:
    """The decoded image of a file's content, upright as its EXIF orientation says.

    Every command reads images here. most: pixels of the header. formats: Pillow's names, None for all that it reads.
    Raises InputError with the problem, which follows a file's name in a message.
    """
    if not content:
        raise InputError("is empty")
    try:
        image = PILImage.open(io.BytesIO(content), formats=formats)
        if problem := unusable(image, most):
            raise InputError(problem)
        image.load()
    except InputError:
        raise
    except UnidentifiedImageError as e:
        if content[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
            raise InputError("is a HEIC image; pip install pillow-heif, or convert it to JPEG") from e
        if formats:
            raise InputError(f"is not an image in one of the formats {', '.join(formats)}") from e
        raise InputError(f"is not an image; it begins with {content[:16]!r}") from e
    except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others for bad files
        raise InputError(f"is damaged: {e}") from e
    with suppress(Exception):  # damaged metadata; Pillow raises SyntaxError, struct.error and others
        ImageOps.exif_transpose(image, in_place=True)
    return image


def resized(image: PILImage.Image, height: int, width: int) -> np.ndarray:
    return np.asarray(image.resize((width, height), PILImage.Resampling.BILINEAR))


def size_of(path: str) -> tuple[int, int]:
    """(height, width) of an upright image file, from its header. Raises InputError."""
    try:
        with PILImage.open(path) as image:
            if image.format == "TIFF":
                image.load()  # Pillow turns it then, and removes the orientation
            turned = image.getexif().get(ExifTags.Base.Orientation) in TURNED
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others for bad files
        raise InputError(f"{path} cannot be read as an image: {e}") from e


def fitted(path: str, height: int, width: int) -> np.ndarray:
    """RGB pixels (h, w, 3) uint8 of a file: as large as height and width allow, in its own aspect ratio.

    Raises InputError.
    """
    h, w = size_of(path)
    scale = min(height / h, width / w)
    return decode(path, max(1, round(h * scale)), max(1, round(w * scale)))


def warn_of_shape(images: Sequence[Image], h: int, w: int) -> None:
    """Logs a warning where the input shape is far from the median aspect ratio of the images."""
    ratios = []
    for image in images[:: -(-len(images) // LOOKED_AT)]:
        with suppress(InputError):  # is reported where the image is decoded
            height, width = size_of(image.path)
            ratios.append(width / height)
    median = float(np.median(ratios)) if ratios else w / h
    if not 1 / FAR <= w / h / median <= FAR:
        logger.warning(
            f"the input is {h} high and {w} wide, but the images are {median:.2g} times as wide as high "
            "(median): they are squashed. Train and evaluate with --h and --w of their shape"
        )


def in_threads(work: Callable, items: Iterable, num_workers: int) -> Iterator:
    """work(item) of each item, in order. num_workers threads work at most AHEAD items in advance; 0: no threads."""
    if not num_workers:
        yield from map(work, items)
        return
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(num_workers, "decode")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def report_bad(problems: Sequence[str], count: int, skip_bad: bool) -> None:
    """Logs the problems of images that cannot be read.

    Raises InputError if there are any and skip_bad is not given, or if none of `count` images is left.
    """
    for problem in problems:
        logger.warning(problem)
    if len(problems) == count:
        raise InputError(f"none of the {count:,} images can be read")
    if problems and not skip_bad:
        raise InputError(
            f"{len(problems):,} of {count:,} images cannot be read (listed above); nothing was written. "
            "Repair them, or leave them out with --skip_bad"
        )


def choose_cache(cache: str, count: int, size: tuple[int, int], device: torch.device) -> str:
    """none, ram or gpu, for `count` images of one size.

    auto: gpu if `device` is CUDA and the pixels need less than a quarter of its free memory, else ram if they need less
    than half of the free memory, else none.
    """
    need = 2 * count * 3 * size[0] * size[1]
    on_gpu = device.type == "cuda"
    if cache == "gpu" and not on_gpu:
        raise InputError("--cache gpu needs a CUDA device; use --cache ram")
    if cache != "auto":
        return cache
    if on_gpu and need < torch.cuda.mem_get_info(device)[0] / 2:
        return "gpu"
    return "ram" if need < psutil.virtual_memory().available else "none"


class ImageStore:
    """The pixels of a list of images at one size.

    cache: none (decoded when needed), ram, gpu (on `device`), or auto (choose_cache). All give the same pixels.
    """

    def __init__(
        self, images: Sequence[Image], h: int, w: int, num_workers: int = 4, cache: str = "none", device="cpu"
    ):
        self.paths = [image.path for image in images]
        self.size = (h, w)
        self.num_workers = num_workers
        self.device = torch.device(device)
        self.pixels: Tensor | None = None
        cache = choose_cache(cache, len(images), self.size, self.device)
        if cache != "none":
            kept = np.empty((len(images), h, w, 3), np.uint8)
            rows = tqdm(self.decoded(range(len(images))), "decoding", len(images), unit=" images", disable=None)
            for row, pixels in enumerate(rows):
                kept[row] = pixels
            self.keep(kept, cache)

    def keep(self, pixels: np.ndarray, cache: str) -> None:
        """Takes the decoded pixels (M, h, w, 3) of all images."""
        self.pixels = torch.from_numpy(pixels)
        if cache == "gpu":
            self.pixels = self.pixels.to(self.device)

    def batches(self, indices: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """uint8 (n, 3, h, w) on the device, channels last, for each sequence of n indices."""
        if self.pixels is not None:
            for rows in indices:
                places = np.asarray(rows, np.int64)  # also where there are none
                yield self.to_device(self.pixels[torch.as_tensor(places, device=self.pixels.device)])
            return
        indices = list(indices)
        stream = self.decoded(i for rows in indices for i in rows)
        for rows in indices:
            batch = np.empty((len(rows), *self.size, 3), np.uint8)  # empty where other processes have the images
            for place in batch:
                place[:] = next(stream)
            yield self.to_device(torch.from_numpy(batch))

    def decoded(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """(h, w, 3) for each index, in order."""
        return in_threads(lambda i: decode(self.paths[i], *self.size), indices, self.num_workers)

    def to_device(self, batch: Tensor) -> Tensor:
        batch = batch.permute(0, 3, 1, 2)
        pinned = Hardware(self.device).pinned
        if pinned and batch.device.type == "cpu":
            batch = batch.pin_memory()
        return batch.to(self.device, non_blocking=pinned)


def in_order(count: int, batch_size: int, start: int = 0) -> list[range]:
    """Indices start..count-1 in batches."""
    return [range(i, min(i + batch_size, count)) for i in range(start, count, batch_size)]
