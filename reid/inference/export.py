"""Exports a model as one file for other programs and compares its results with the model's.

onnx: uint8 RGB images (N, H, W, 3) of the model's size -> descriptors (N, S x D) of unit length, any N. The caller
resizes (bilinear with antialias, as Pillow and torchvision's v2 do), because no ONNX operator equals Pillow's uint8
filter. safetensors, pth: the tensors with configuration, classes and digest, which every command here reads like
weights.pth; --half makes a small file for sharing.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reid.config import Config
from reid.data.demo import draw
from reid.data.loader import decode
from reid.data.transforms import normalise
from reid.errors import CheckFailed
from reid.inference.describe import describe
from reid.inference.prepare import fold
from reid.models.tensors import digest, save_safetensors, save_tensors
from reid.models.weights import FORMAT

INPUTS = ("nhwc", "nchw", "normalised")
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",), "pth": ()}
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-3  # largest difference of a value
SMALL = 1 << 18  # values in a tensor; smaller tensors stay float32: they need little space
SLACK = 0.1  # fraction of a tolerance; squared distances closer than this may swap ranks


class Descriptor(nn.Module):
    """Images as one of INPUTS -> unit-length descriptors (N, S x D), with the mean over the mirror image (`flip`)."""

    def __init__(self, model: nn.Module, inputs: str, flip: bool):
        super().__init__()
        self.model, self.inputs, self.flip = model, inputs, flip

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2) if self.inputs == "nhwc" else images
        x = x if self.inputs == "normalised" else normalise(x)
        features = self.model(torch.cat([x, x.flip(3)]) if self.flip else x).flatten(1)
        if self.flip:
            features = features.unflatten(0, (2, -1)).mean(0)
        return features / features.norm(dim=1, keepdim=True)


def as_input(pixels: np.ndarray, inputs: str) -> np.ndarray:
    """uint8 (N, H, W, 3) converted to the input of the exported file."""
    if inputs == "nhwc":
        return pixels
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return planes if inputs == "nchw" else normalise(torch.from_numpy(planes)).numpy()


def export_onnx(
    path: Path, model: nn.Module, size: tuple[int, int], inputs: str, flip: bool, metadata: dict[str, str]
) -> None:
    """Writes the model, batch norms folded, as ONNX with `metadata` in its metadata_props."""
    import onnx

    example = as_input(np.zeros((2, *size, 3), np.uint8), inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.11 warns about its own calls
        program = torch.onnx.export(
            Descriptor(fold(model, size), inputs, flip).eval(),
            (torch.from_numpy(example),),
            dynamo=True,
            input_names=["images"],
            output_names=["descriptors"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    if program is None:
        raise CheckFailed("torch could not export this model as ONNX")
    program.save(path)
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def run_onnx(path: Path, pixels: np.ndarray, inputs: str) -> np.ndarray:
    """Descriptors by ONNX Runtime, in batches of two sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = [pixels[:1], pixels[1:]]
    return np.concatenate([session.run(None, {"images": as_input(p, inputs)})[0] for p in parts])


def reference(model: nn.Module, pixels: np.ndarray, flip: bool) -> np.ndarray:
    """Descriptors as every command here computes them, in float32 without folding."""
    batches = [torch.from_numpy(p).permute(0, 3, 1, 2) for p in np.array_split(pixels, -(-len(pixels) // 16))]
    return torch.cat([d.flatten(1) for d in describe(model, batches, "cpu", flip)]).numpy()


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
