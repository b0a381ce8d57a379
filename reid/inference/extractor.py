"""reid.Extractor: descriptors of any images, from Python."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from reid.config import PRECISIONS, Config
from reid.data.loader import decode, in_order, in_threads, resized
from reid.errors import InputError
from reid.files import sha256
from reid.inference.describe import describe
from reid.inference.engines import WORTH, Wanted, open_engine
from reid.inference.int8 import Calibration
from reid.models.weights import read_weights


class Extractor:
    """Computes descriptors: extractor(images) -> descriptors (N, S x D) float32 of unit length.

    `images` is a sequence of paths or uint8 RGB arrays (H, W, 3) of any size. They are resized as in training.
    Descriptors in float32 differ from those of the training model (eval mode) by less than 1e-4.

    engine: torch, onnx, openvino or plain (reid/inference/engines.py). On the CPU, onnx and openvino (extra [engines])
    are faster; they need some seconds once for each weights file. auto is the fastest, measured once. precision: fp32,
    tf32, bf16 (faster where the hardware has it; cosines to the float32 descriptors above 0.999), or for int8 (auto,
    onnx, openvino) a Calibration of training images. Raises MissingInput, InputError, CheckFailed.

    Extractor("weights.pth")(["a.jpg", "b.jpg"]) has the shape (2, 3840) for the paper's model.
    """

    def __init__(
        self,
        weights: str | Path,
        device: str | torch.device = "cpu",
        *,
        engine: str = "torch",
        precision: str | Calibration = "fp32",
        flip: bool = True,
        batch_size: int = Config.batch_size,
        num_workers: int = Config.num_workers,
    ):
        self.calibration = precision if isinstance(precision, Calibration) else None
        if not isinstance(precision, Calibration) and precision not in PRECISIONS:
            raise InputError(
                f"precision {precision!r} is unknown; choose from {', '.join(PRECISIONS)}, or a Calibration (int8)"
            )
        self.precision = "int8" if isinstance(precision, Calibration) else precision
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} {value!r}: expected an integer of at least {least}")
        self.device = usable_device(device)
        model, config = read_weights(weights)
        self.weights, self.sha256 = Path(weights), sha256(Path(weights))
        self.size, self.flip = (config.h, config.w), flip
        self.batch_size, self.num_workers = batch_size, num_workers
        wanted = Wanted(
            engine=engine,
            precision=self.precision,
            flip=flip,
            device=self.device,
            sha256=self.sha256,
            count=WORTH,
            batch_size=batch_size,
            calibration=self.calibration,
        )
        self.engine = open_engine(model, self.size, wanted)
        self.bands = getattr(model, "bands", None)

    def __call__(self, images: Iterable[str | Path | np.ndarray]) -> np.ndarray:
        if isinstance(images, (str, Path)) or getattr(images, "ndim", 1) == 3:
            raise InputError("expected a sequence of images, got one image; put it into a list")
        found = describe(self.engine, self.batches(list(images)))
        rows = [d.flatten(1).cpu() for d in found]
        return torch.cat(rows).numpy() if rows else np.zeros((0, 0), np.float32)

    def batches(self, images: Sequence[str | Path | np.ndarray]) -> Iterator[Tensor]:
        """uint8 (n, 3, h, w)."""
        pixels = in_threads(self.pixels, images, self.num_workers)
        for rows in in_order(len(images), self.batch_size):
            batch = np.stack([next(pixels) for _ in rows])
            yield torch.from_numpy(batch).permute(0, 3, 1, 2)

    def pixels(self, image: str | Path | np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8."""
        if isinstance(image, (str, Path)):
            return decode(str(image), *self.size)
        if not isinstance(image, np.ndarray):
            raise InputError(f"an image is a {type(image).__name__}; expected a path or a uint8 RGB array")
        if image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
            raise InputError(f"an image is {image.dtype} {image.shape}; expected uint8 RGB (height, width, 3)")
        return resized(PILImage.fromarray(image), *self.size)


def usable_device(device: str | torch.device) -> torch.device:
    """The device, with its index. Raises InputError if it cannot be used."""
    try:
        return torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError) as e:  # PyTorch raises both, the latter in builds without CUDA
        raise InputError(f"device {device!r} cannot be used here: {e}") from e
