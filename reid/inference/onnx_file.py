"""Models as ONNX files: uint8 RGB images of the model's size -> descriptors of unit length, any number at once."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from reid.data.transforms import normalise
from reid.errors import CheckFailed
from reid.inference.prepare import fold

INPUTS = ("nhwc", "nchw", "normalised")


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
    """Writes the model, batch norms folded, as ONNX with `metadata` in its metadata_props. Raises CheckFailed."""
    import onnx

    example = as_input(np.zeros((2, *size, 3), np.uint8), inputs)
    folded = Descriptor(fold(model, size), inputs, flip).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch's exporter about torch's own calls, in 2.11
            program = torch.onnx.export(
                folded,
                (torch.from_numpy(example),),
                dynamo=True,
                input_names=["images"],
                output_names=["descriptors"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        assert program is not None
    except Exception as e:  # of several types of torch, with many lines
        raise CheckFailed(f"PyTorch cannot write this model as ONNX ({type(e).__name__}); use --engine torch") from e
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
