"""Exports a model as one file for other programs and compares its results with the model's.

onnx: uint8 RGB images (N, H, W, 3) of the model's size -> descriptors (N, S x D) of unit length, any N. The caller
resizes (bilinear with antialias, as Pillow and torchvision's v2 do), because no ONNX operator equals Pillow's uint8
filter. safetensors, pth: the tensors with configuration, classes and digest, which every command here reads like
weights.pth; --half makes a small file for sharing.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from reid.config import Config
from reid.data.demo import draw
from reid.data.loader import decode
from reid.inference.describe import describe
from reid.inference.engines import TorchEngine
from reid.models.tensors import digest, save_safetensors, save_tensors
from reid.models.weights import FORMAT

NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",), "pth": ()}
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-3  # largest difference of a value
SMALL = 1 << 18  # values in a tensor; smaller tensors stay float32: they need little space
SLACK = 0.1  # fraction of a tolerance; squared distances closer than this may swap ranks


def reference(model: nn.Module, pixels: np.ndarray, flip: bool) -> np.ndarray:
    """Descriptors as every command here computes them, in float32 without folding."""
    batches = [torch.from_numpy(p).permute(0, 3, 1, 2) for p in np.array_split(pixels, -(-len(pixels) // 16))]
    return torch.cat([d.flatten(1) for d in describe(TorchEngine(model, flip=flip), batches)]).numpy()


def parity(expected: np.ndarray, got: np.ndarray, slack: float = SLACK * TOLERANCE) -> tuple[float, int]:
    """(largest difference of any number, changes of the ranking) of descriptors (N, F) of the same images.

    Each image is ranked against all others by `got`; a change is an answer that comes before another one although the
    `expected` squared distances put it more than `slack` behind.
    """
    if expected.shape != got.shape or not np.isfinite(got).all():
        return float("inf"), len(expected)
    distance = [2 - 2 * f.astype(np.float64) @ f.T.astype(np.float64) for f in (expected, got)]
    for d in distance:
        np.fill_diagonal(d, -1)
    ranked = np.take_along_axis(distance[0], distance[1].argsort(1), 1)
    behind = np.maximum.accumulate(ranked, 1) - ranked > slack
    return float(np.abs(expected - got).max()), int(behind.sum())


def demo_pixels(size: tuple[int, int], count: int, folder: Path) -> np.ndarray:
    """Images of the demo dataset, four per person, saved and decoded like real images."""
    for i in range(count):
        draw(i // 4, i % 4, 0).save(folder / f"{i}.jpg")
    return np.stack([decode(str(folder / f"{i}.jpg"), *size) for i in range(count)])


def write_plain(path: Path, form: str, half: bool, model: nn.Module, config: Config, metadata: dict[str, str]) -> None:
    """Writes the model in the project's format, as safetensors or pth (`form`).

    half: drops classifiers and training-only settings, and stores large tensors as float16. Small tensors stay float32,
    because batch-norm statistics can exceed the range of float16.
    """
    state = model.state_dict()
    classes: Any = model.num_classes
    if half:
        config, classes = replace(config.for_evaluation(), pretrained="none"), 0
        state = {k: v for k, v in state.items() if not k.startswith("classifier")}
        state = {k: v.half() if v.numel() > SMALL else v for k, v in state.items()}
    content = {"format": FORMAT, "config": config.to_json(), "classes": classes, "state": state}
    if form == "safetensors":
        save_safetensors(path, content, metadata)
    else:
        content["about"] = metadata
        save_tensors(path, {**content, "digest": digest(content)})
