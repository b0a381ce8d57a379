"""reid.Extractor: descriptors of any images, from Python."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from reid.data.loader import decode, in_order
from reid.errors import InputError
from reid.files import sha256
from reid.inference.describe import describe
from reid.inference.prepare import prepare
from reid.models.weights import read_weights

PRECISIONS = ("fp32", "tf32", "bf16")


class Extractor:
    """Weights made ready for use: extractor(images) -> descriptors (N, S x D) float32 of unit length.

    `images` is a sequence of paths or uint8 RGB arrays (H, W, 3) of any size; they are resized as in training.
    The model runs with batch norms folded into what stands before them, channels last, and is equal to the training
    model's eval mode to 1e-4. precision: fp32, tf32, or bf16 (about twice as fast where the hardware has it; cosines to
    the float32 descriptors above 0.999). compile: torch.compile of the backbone: half a minute once, then 1.15 times as
    fast in float32; it sets torch._inductor.config.freezing for the whole process. Raises MissingInput, InputError.

    Extractor("weights.pth")(["a.jpg", "b.jpg"]) has the shape (2, 3840) for the paper's model.
    """

    def __init__(
        self,
        weights: str | Path,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        compile: bool = False,
        flip: bool = True,
        batch_size: int = 32,
        num_workers: int = 4,
    ):
        if precision not in PRECISIONS or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"precision {precision!r}, batch_size {batch_size!r}: expected one of "
                             f"{', '.join(PRECISIONS)}, and a whole number from 1 up")  # fmt: skip
        try:
            self.device = torch.zeros(0, device=device).device
        except (RuntimeError, AssertionError) as e:  # torch's, of a build without CUDA too
            raise InputError(f"device {device!r} cannot be used here: {e}") from e
        model, config = read_weights(weights)
        self.size, self.flip, self.precision = (config.h, config.w), flip, precision
        self.batch_size, self.num_workers = batch_size, num_workers
        self.weights, self.sha256 = Path(weights), sha256(Path(weights))
        self.model = prepare(model, self.size, precision, compile).to(self.device)

    def __call__(self, images: Iterable[str | Path | np.ndarray]) -> np.ndarray:
        if isinstance(images, (str, Path)) or getattr(images, "ndim", 1) == 3:
            raise InputError("one image came, expected a sequence of them: put it into a list")
        found = describe(self.model, self.batches(list(images)), self.device, self.flip, self.precision)
        rows = [d.flatten(1).cpu() for d in found]
        return torch.cat(rows).numpy() if rows else np.zeros((0, 0), np.float32)

    def batches(self, images: Sequence[str | Path | np.ndarray]) -> Iterator[Tensor]:
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            for rows in in_order(len(images), self.batch_size):
                pixels = np.stack(list(pool.map(self.pixels, [images[i] for i in rows])))
                yield torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def pixels(self, image: str | Path | np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8."""
        if isinstance(image, (str, Path)):
            return decode(str(image), *self.size)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
            what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(f"an image is {what}; expected a path or a uint8 RGB array (height, width, 3)")
        height, width = self.size
        return np.asarray(PILImage.fromarray(image).resize((width, height), PILImage.Resampling.BILINEAR))
