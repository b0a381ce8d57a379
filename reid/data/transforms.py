"""Augmentation and normalisation of a decoded batch, on its device.

All random numbers of a training step are drawn beforehand, on the host, from
(seed, epoch, step) and for the whole global batch. Results therefore do not depend
on the device, the number of workers or the number of processes.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reid.config import Config
from reid.device import Hardware

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
LEAST_AREA = 0.02  # erased share of the image
RATIO = (0.3, 1 / 0.3)  # height to width of the erased patch


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Settings of random erasing (Zhong et al. 2017) and cropping, named as in Config.

    "in_place" erases an image with erasing_probability, where the patch was drawn.
    "published" does so with (1 + probability) / 2, and pastes the patch with its corner at
    (own width, own height), cut at the border. Areas are shares of the image.
    """

    erasing_probability: float = 0.5
    erasing: str = "in_place"
    erasing_area: float = 0.2  # the largest
    erasing_fill: str = "random"  # one random colour per image; or "mean", ImageNet's mean
    crop_padding: int = 0  # pixels by which an image may move

    @classmethod
    def of(cls, config: Config) -> "Augmentation":
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


class Draws(NamedTuple):
    """Random numbers for a batch of N images, in pixels.

    An image is shifted on a black background, which equals padding and cropping. Then its
    box is filled, and then it is mirrored. This is the published order.
    """

    flip: np.ndarray  # (N,) bool
    top: np.ndarray  # (N,) of the box, like the next three; empty boxes have height 0
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    colour: np.ndarray  # (N, 3) uint8
    down: np.ndarray  # (N,) negative means up
    right: np.ndarray  # (N,) negative means left

    def part(self, rows: slice) -> "Draws":
        return Draws(*(x[rows] for x in self))


def draw_augmentation(rng: np.random.Generator, n: int, h: int, w: int, settings: Augmentation) -> Draws:
    """Random numbers for n images of h x w pixels.

    A patch that does not fit into the image is drawn again.
    """
    published = settings.erasing == "published"
    p = settings.erasing_probability
    flip = rng.random(n) < 0.5
    erase = rng.random(n) < ((1 + p) / 2 if published else p)
    height, width = np.zeros(n, int), np.zeros(n, int)
    todo = np.arange(n)
    while len(todo):
        area = rng.uniform(LEAST_AREA, settings.erasing_area, len(todo)) * h * w
        ratio = rng.uniform(*RATIO, len(todo))
        height[todo], width[todo] = np.sqrt(area * ratio), np.sqrt(area / ratio)
        todo = todo[(height[todo] >= h) | (width[todo] >= w)]
    height, width = height * erase, width * erase
    top = rng.integers(0, h - height + 1)
    left = rng.integers(0, w - width + 1)
    if published:
        top, left = height, width
    colour = rng.integers(0, 256, (n, 3), dtype=np.uint8)
    if settings.erasing_fill == "mean":
        colour[:] = np.round(255 * np.array(MEAN))
    most = settings.crop_padding
    down, right = rng.integers(-most, most + 1, (2, n))
    return Draws(flip, top, left, height, width, colour, down, right)


def augment(images: Tensor, draws: Draws) -> Tensor:
    """uint8 (N, 3, H, W), moved, erased and mirrored as drawn; a new tensor."""

    def on_device(x: np.ndarray) -> Tensor:
        x = np.ascontiguousarray(x)
        return torch.from_numpy(x).to(images.device, non_blocking=Hardware(images.device).pinned)

    def inside(size: int, start: np.ndarray, length: np.ndarray) -> Tensor:
        """(N, size) bool: the pixels of one axis that the box covers."""
        first, pixels = on_device(start)[:, None], torch.arange(size, device=images.device)
        return (pixels >= first) & (pixels < first + on_device(length)[:, None])

    d = draws
    if padding := int(max(np.abs(d.down).max(), np.abs(d.right).max())):
        images = moved(images, on_device(d.down), on_device(d.right), padding)
    h, w = images.shape[2:]
    rows, columns = inside(h, d.top, d.height), inside(w, d.left, d.width)
    box = (rows[:, :, None] & columns[:, None, :])[:, None]
    result = torch.where(box, on_device(d.colour)[:, :, None, None], images)
    mirrored = on_device(np.flatnonzero(d.flip))
    result[mirrored] = result[mirrored].flip(3)
    return result


def moved(images: Tensor, down: Tensor, right: Tensor, padding: int) -> Tensor:
    """Each image of (N, 3, H, W) shifted on a black background.

    down, right: (N,) pixels, at most `padding` in either direction.
    """
    n, _, h, w = images.shape
    device = images.device
    # (N, H) rows and (N, W) columns of the padded image
    rows = torch.arange(h, device=device) + padding - down[:, None]
    columns = torch.arange(w, device=device) + padding - right[:, None]
    which = torch.arange(n, device=device)[:, None, None]
    padded = F.pad(images, [padding] * 4).permute(0, 2, 3, 1)
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cover(images: Tensor, band: int, bands: int = 6) -> Tensor:
    """uint8 (N, 3, H, W) with one horizontal band in ImageNet's mean colour.

    band: 1 at the top to `bands` at the bottom, all of equal height. Returns a new
    tensor.
    """
    h, result = images.shape[2], images.clone()
    mean = [round(255 * m) for m in MEAN]
    colour = torch.tensor(mean, dtype=torch.uint8, device=images.device)
    result[:, :, (band - 1) * h // bands : band * h // bands] = colour[:, None, None]
    return result


def normalise(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) as float32, normalised with ImageNet's mean and deviation per channel."""
    mean = 255 * torch.tensor(MEAN, device=images.device)[:, None, None]
    std = 255 * torch.tensor(STD, device=images.device)[:, None, None]
    return images.float().sub_(mean).div_(std)
