"""What happens to a batch after decoding: crop, erase, flip, normalise, on whatever device the batch is.

Every random number of a training step is drawn before, on the host, from (seed, epoch, step), for the whole
global batch: so the device, the number of workers and the number of processes change nothing.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reid.device import Hardware

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
LEAST_AREA, RATIO = 0.02, (0.3, 1 / 0.3)  # erased share of the image; height to width of the patch


class Augmentation(NamedTuple):
    """Per image of a batch: whether to mirror it, the box (empty for none) painted in one colour, and how far it is
    moved on black ground (a crop after padding). Moving comes before erasing, and that before mirroring, as published.
    """

    flip: np.ndarray  # (N,) bool
    top: np.ndarray  # (N,) pixels, as left, height and width
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    colour: np.ndarray  # (N, 3) uint8
    down: np.ndarray  # (N,) pixels, negative for up, as right
    right: np.ndarray

    def part(self, rows: slice) -> "Augmentation":
        return Augmentation(*(x[rows] for x in self))


def draw_augmentation(
    rng: np.random.Generator,
    n: int,
    h: int,
    w: int,
    probability: float,
    erasing: str = "in_place",
    largest: float = 0.2,
    fill: str = "random",
    padding: int = 0,
) -> Augmentation:
    """Random numbers for n images of h x w pixels.

    erasing 'in_place': each image with this probability, the patch where it was drawn. 'published': with
    (1 + probability) / 2, pasted with its corner at (own width, own height) and cut at the border.
    A patch that does not fit the image is drawn again (Zhong et al. 2017, arXiv 1708.04896). largest: share of the
    image; fill: one random colour an image, or ImageNet's mean. padding: pixels by which an image may move.
    """
    flip = rng.random(n) < 0.5
    erase = rng.random(n) < (probability if erasing == "in_place" else (1 + probability) / 2)
    height, width = np.zeros(n, int), np.zeros(n, int)
    todo = np.arange(n)
    while len(todo):
        area = rng.uniform(LEAST_AREA, largest, len(todo)) * h * w
        ratio = rng.uniform(*RATIO, len(todo))
        height[todo], width[todo] = np.sqrt(area * ratio), np.sqrt(area / ratio)
        todo = todo[(height[todo] >= h) | (width[todo] >= w)]
    height, width = height * erase, width * erase
    top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
    if erasing == "published":
        top, left = height, width
    colour = rng.integers(0, 256, (n, 3), dtype=np.uint8)
    if fill == "mean":
        colour[:] = np.round(255 * np.array(MEAN))
    down, right = rng.integers(-padding, padding + 1, (2, n))
    return Augmentation(flip, top, left, height, width, colour, down, right)


def augment(images: Tensor, a: Augmentation) -> Tensor:
    """uint8 (N, 3, H, W) -> the same moved, its boxes painted, then mirrored; a new tensor."""

    def on_device(x: np.ndarray) -> Tensor:
        beside = Hardware(images.device).pinned
        return torch.from_numpy(np.ascontiguousarray(x)).to(images.device, non_blocking=beside)

    if padding := int(max(np.abs(a.down).max(), np.abs(a.right).max())):
        images = moved(images, on_device(a.down), on_device(a.right), padding)
    top, left, height, width = (on_device(x)[:, None] for x in a[1:5])
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    inside_rows = (rows >= top) & (rows < top + height)  # (N, H)
    inside_columns = (columns >= left) & (columns < left + width)  # (N, W)
    box = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
    result = torch.where(box, on_device(a.colour)[:, :, None, None], images)
    mirrored = on_device(np.flatnonzero(a.flip))
    result[mirrored] = result[mirrored].flip(3)
    return result


def moved(images: Tensor, down: Tensor, right: Tensor, padding: int) -> Tensor:
    """Each image (N, 3, H, W) by its own number of pixels, at most `padding`, on black ground."""
    n, _, h, w = images.shape
    rows = torch.arange(h, device=images.device) + padding - down[:, None]  # (N, H) rows of the padded image
    columns = torch.arange(w, device=images.device) + padding - right[:, None]
    which = torch.arange(n, device=images.device)[:, None, None]
    padded = F.pad(images, [padding] * 4).permute(0, 2, 3, 1)
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cover(images: Tensor, band: int, bands: int = 6) -> Tensor:
    """uint8 (N, 3, H, W) -> the same with one of its equal horizontal bands, counted from 1 at the top, in ImageNet's
    mean colour; a new tensor."""
    h, result = images.shape[2], images.clone()
    mean = torch.tensor([round(255 * m) for m in MEAN], dtype=torch.uint8, device=images.device)
    result[:, :, (band - 1) * h // bands : band * h // bands] = mean[:, None, None]
    return result


def normalise(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) in 0..255 -> float32 with ImageNet's mean and deviation per channel."""
    mean = 255 * torch.tensor(MEAN, device=images.device)[:, None, None]
    std = 255 * torch.tensor(STD, device=images.device)[:, None, None]
    return images.float().sub_(mean).div_(std)
