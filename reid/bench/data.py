"""Images to normalised batches: one at a time as usual, decoded in threads, and from the cache."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torchvision.transforms import v2

from reid.bench.measure import side_by_side, table
from reid.data.loader import ImageStore
from reid.data.records import Image
from reid.data.transforms import MEAN, STD, Augmentation, augment, draw_augmentation, normalise


def add_arguments(parser) -> None:
    for name, default in {"h": 384, "w": 128, "images": 512, "batch_size": 64, "num_workers": 4, "repeat": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")


def main(arguments) -> int:
    a, rng = arguments, np.random.default_rng(0)
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    usual = v2.Compose([v2.Resize((a.h, a.w)), v2.RandomHorizontalFlip(), *to_float, v2.RandomErasing()])
    with tempfile.TemporaryDirectory() as folder:
        images = []
        for i in range(a.images):
            path = Path(folder) / f"{i}.jpg"
            smooth = PILImage.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)).resize((64, 128))
            smooth.save(path)
            images.append(Image(str(path), i, 0))
        rows = [range(i, min(i + a.batch_size, a.images)) for i in range(0, a.images, a.batch_size)]

        def one_by_one() -> None:
            for batch in rows:
                torch.stack([usual(PILImage.open(images[i].path).convert("RGB")) for i in batch])

        def ours(store: ImageStore) -> None:
            for pixels in store.batches(rows):
                normalise(augment(pixels, draw_augmentation(rng, len(pixels), a.h, a.w, Augmentation())))

        kept = ImageStore(images, a.h, a.w, a.num_workers, "ram")
        forms = {"one image at a time": one_by_one}
        for workers in (0, a.num_workers):
            store = ImageStore(images, a.h, a.w, workers, "none")
            forms[f"decoded, {workers} threads"] = lambda store=store: ours(store)
        forms["from the cache"] = lambda: ours(kept)
        measured = side_by_side(forms, a.repeat)
    print(
        table(
            f"data, {a.images} images of 128x64 to {a.h}x{a.w}, batch {a.batch_size}", measured, "one image at a time"
        )
    )
    for name, m in measured.items():
        print(f"{name}: {a.images / m.seconds:,.0f} images/s")
    return 0
