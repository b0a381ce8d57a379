"""From files to batches of uint8 pixels on the device: decoded and resized once and kept, or as they are needed.

Decoding runs in threads: Pillow works outside Python's lock, so nothing is copied between processes, and an
unreadable image raises here, with its name.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import psutil
import torch
from PIL import Image as PILImage
from torch import Tensor
from tqdm import tqdm

from reid.data.records import Image
from reid.device import Hardware
from reid.errors import InputError, MissingInput

MAX_PIXELS = 64_000_000  # a person crop is far smaller; a larger header is damage or a decompression bomb


def unusable(image: PILImage.Image) -> str:
    """Why an image, not yet decoded, is none to train or search with; "" when it is one."""
    if image.width * image.height > MAX_PIXELS:
        return f"has {image.width} x {image.height} pixels, too many for an image of a person"
    if image.mode[0] in "IF":
        return (f"has more than 8 bits a channel (mode {image.mode}), and how bright its white is nobody knows; "
                "convert it to 8 bits")  # fmt: skip
    return ""


def decode(path: str, height: int, width: int) -> np.ndarray:
    """RGB pixels (height, width, 3) uint8, resized by Pillow's bilinear filter (with antialias).

    Raises MissingInput, or InputError when the file is no image, damaged, larger than MAX_PIXELS, of more than 8 bits
    a channel, or named in bytes that are no text.
    """
    try:
        path.encode()
        with PILImage.open(path) as image:
            if wrong := unusable(image):
                raise InputError(f"{path} {wrong}")
            return np.asarray(image.convert("RGB").resize((width, height), PILImage.Resampling.BILINEAR))
    except InputError:
        raise
    except UnicodeEncodeError as e:
        raise InputError(f"image {path!r}: its name is no UTF-8 text; rename it") from e
    except FileNotFoundError as e:
        raise MissingInput(f"image {path} is not there; was it moved after the dataset was prepared?") from e
    except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others for bad files
        raise InputError(f"{path} cannot be read as an image: {e}; replace it, or take it out of the lists") from e


def free_memory() -> int:
    """Bytes of main memory that are available."""
    return psutil.virtual_memory().available


class ImageStore:
    """The pixels of a list of images at one size.

    cache: none (decoded when needed), ram, gpu (on `device`), or auto: gpu where `device` is CUDA and its
    memory takes it twice, else ram where memory takes it twice, else none. All give the same pixels.
    """

    def __init__(
        self, images: Sequence[Image], h: int, w: int, num_workers: int = 4, cache: str = "none", device="cpu"
    ):
        self.paths = [image.path for image in images]
        self.size = (h, w)
        self.num_workers = num_workers
        self.device = torch.device(device)
        self.pixels: Tensor | None = None
        cache = self.choose(cache)
        if cache != "none":
            kept = np.empty((len(images), h, w, 3), np.uint8)
            rows = tqdm(self.decoded(range(len(images))), "decoding", len(images), unit=" images", disable=None)
            for row, pixels in enumerate(rows):
                kept[row] = pixels
            self.pixels = torch.from_numpy(kept)
            if cache == "gpu":
                self.pixels = self.pixels.to(self.device)

    def choose(self, cache: str) -> str:
        need = 2 * len(self.paths) * 3 * self.size[0] * self.size[1]
        on_gpu = self.device.type == "cuda"
        if cache == "gpu" and not on_gpu:
            raise InputError("--cache gpu needs a CUDA device; use --cache ram")
        if cache != "auto":
            return cache
        if on_gpu and need < torch.cuda.mem_get_info(self.device)[0] / 2:
            return "gpu"
        return "ram" if need < free_memory() else "none"

    def batches(self, indices: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """uint8 (n, 3, h, w) on the device, channels last, for each sequence of n indices."""
        if self.pixels is not None:
            for rows in indices:
                yield self.to_device(self.pixels[torch.as_tensor(np.asarray(rows), device=self.pixels.device)])
            return
        indices = list(indices)
        stream = self.decoded(i for rows in indices for i in rows)
        for rows in indices:
            batch = np.empty((len(rows), *self.size, 3), np.uint8)  # empty where other processes have the images
            for place in batch:
                place[:] = next(stream)
            yield self.to_device(torch.from_numpy(batch))

    def decoded(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        """(h, w, 3) for each index, in order, num_workers threads working two batches ahead."""
        if not self.num_workers:
            yield from (decode(self.paths[i], *self.size) for i in indices)
            return
        waiting: deque[Future] = deque()
        pool = ThreadPoolExecutor(self.num_workers, "decode")
        try:
            for i in indices:
                waiting.append(pool.submit(decode, self.paths[i], *self.size))
                if len(waiting) >= 128:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def to_device(self, batch: Tensor) -> Tensor:
        batch = batch.permute(0, 3, 1, 2)
        pinned = Hardware(self.device).pinned
        if pinned and batch.device.type == "cpu":
            batch = batch.pin_memory()
        return batch.to(self.device, non_blocking=pinned)


def in_order(count: int, batch_size: int, start: int = 0) -> list[range]:
    """Indices start..count-1 in batches."""
    return [range(i, min(i + batch_size, count)) for i in range(start, count, batch_size)]
