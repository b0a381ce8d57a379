"""Images to normalised batches: one at a time as usual, in threads, and from the cache."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torchvision.transforms import v2

from reid.bench.measure import Measured, check_close, side_by_side, table
from reid.data.loader import ImageStore
from reid.data.records import Image
from reid.data.transforms import MEAN, STD, Augmentation, augment, draw_augmentation, normalise

USUAL = "one image at a time"


def run(a) -> Iterator[str]:
    batches = [range(i, min(i + a.batch_size, a.images)) for i in range(0, a.images, a.batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        images = draw_images(Path(folder), a.images)
        stores = {
            f"decoded, {workers} threads": ImageStore(images, a.h, a.w, workers, "none")
            for workers in (0, a.num_workers)
        }
        stores["from the cache"] = ImageStore(images, a.h, a.w, a.num_workers, "ram")
        check_pixels(stores, images, batches[0])
        forms = {USUAL: partial(one_by_one, images, batches, a.h, a.w)}
        for name, store in stores.items():
            forms[name] = partial(through_store, store, batches)
        rows = side_by_side(forms, a.repeat)
    title = f"data, {a.images} images of 128x64 to {a.h}x{a.w}, batch {a.batch_size}"
    yield table(title, rows, USUAL)
    for name, row in rows.items():
        yield f"{name}: {a.images / row.seconds:,.0f} images/s"


def draw_images(folder: Path, count: int) -> list[Image]:
    """JPEG files of smooth random colours."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(count):
        path = folder / f"{i}.jpg"
        coarse = PILImage.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8))
        coarse.resize((64, 128)).save(path)
        images.append(Image(str(path), i, 0))
    return images


def usual_transform(h: int, w: int, augmented: bool) -> v2.Compose:
    """torchvision's steps for one image."""
    steps = [v2.Resize((h, w)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    steps.append(v2.Normalize(MEAN, STD))
    return v2.Compose([v2.RandomHorizontalFlip(), *steps, v2.RandomErasing()] if augmented else steps)


def usual_batch(images: list[Image], rows: range, transform: v2.Compose) -> Tensor:
    return torch.stack([transform(PILImage.open(images[i].path).convert("RGB")) for i in rows])


def one_by_one(images: list[Image], batches: list[range], h: int, w: int) -> None:
    transform = usual_transform(h, w, augmented=True)
    for rows in batches:
        usual_batch(images, rows, transform)


def through_store(store: ImageStore, batches: list[range]) -> None:
    rng = np.random.default_rng(0)
    for pixels in store.batches(batches):
        augmented_batch(pixels, rng)


def augmented_batch(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """uint8 (N, 3, H, W) -> float32, with the paper's augmentation."""
    n, _, h, w = pixels.shape
    return normalise(augment(pixels, draw_augmentation(rng, n, h, w, Augmentation())))


def check_pixels(stores: dict[str, ImageStore], images: list[Image], rows: range) -> None:
    """Raises CheckFailed unless all variants give the same batch before augmentation."""
    h, w = next(iter(stores.values())).size
    batches = {USUAL: usual_batch(images, rows, usual_transform(h, w, augmented=False))}
    for name, store in stores.items():
        batches[name] = normalise(next(iter(store.batches([rows]))))
    check_close({name: Measured(0, None, batch) for name, batch in batches.items()}, batches, 1e-5)
