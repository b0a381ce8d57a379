"""python -m reid export: a model as one file for other programs, kept only when it gives the same answers.

onnx: uint8 RGB images (N, H, W, 3) of the model's size -> descriptors (N, S x D) of unit length, any N. Resizing stays
outside: no ONNX operator equals Pillow's antialiased uint8 bilinear filter, so the caller resizes (bilinear with
antialias, as Pillow's and torchvision's v2 do). safetensors, pth: the tensors with configuration, classes and digest,
which every command here reads like weights.pth; --half makes the small file to hand on.
"""

import importlib.util
import json
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from reid.config import Config
from reid.data.demo import draw
from reid.data.loader import decode
from reid.data.transforms import normalise
from reid.deploy.extract import find_images, fold
from reid.errors import InputError
from reid.evaluation.features import describe
from reid.models import read_weights
from reid.models.files import digest, save_safetensors, save_tensors, sha256
from reid.runs import atomic_file, commit, installed, writing
from reid.training.checkpoint import FORMAT

INPUTS = ("nhwc", "nchw", "normalised")
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",), "pth": ()}
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-3  # of a descriptor's numbers
SMALL = 1 << 18  # numbers of a tensor; smaller ones cost little, and those of a small backbone differ most
SLACK = 0.1  # of these tolerances: squared distances closer than this may change places


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
    """uint8 (N, H, W, 3) as the exported file takes it."""
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
        warnings.simplefilter("ignore", FutureWarning)  # of torch's exporter about torch's own calls, in 2.11
        program = torch.onnx.export(
            Descriptor(fold(model, size), inputs, flip).eval(),
            (torch.from_numpy(example),),
            dynamo=True,
            input_names=["images"],
            output_names=["descriptors"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
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
    """Descriptors as every command here makes them, float32, nothing folded."""
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
    """Images of the demo, four of a person, through files as real ones are."""
    for i in range(count):
        draw(i // 4, i % 4, 0).save(folder / f"{i}.jpg")
    return np.stack([decode(str(folder / f"{i}.jpg"), *size) for i in range(count)])


def add_arguments(parser) -> None:
    parser.add_argument("--weights", required=True, help="weights.pth or .safetensors")
    parser.add_argument(
        "--format", choices=tuple(NEEDS), required=True, help="onnx, safetensors, or pth as train.py does"
    )
    parser.add_argument("--out", default=None, help="the file (default: beside the weights, with the format's suffix)")
    parser.add_argument("--input", choices=INPUTS, default="nhwc",
                        help="of the ONNX: uint8 RGB as nhwc or nchw, normalised in the graph; or normalised: float32 "
                        "NCHW, ImageNet's mean and deviation taken by the caller (default nhwc)")  # fmt: skip
    parser.add_argument("--no_flip", action="store_true", default=False, help="leave the mirror image out")
    parser.add_argument("--images", nargs="+", default=None, help="images to compare on (default: drawn ones)")
    parser.add_argument("--num_images", type=int, default=32, help="how many of them (default 32)")
    parser.add_argument("--half", action="store_true", default=False,
                        help="safetensors and pth: no classifiers, float16: the file to hand on")  # fmt: skip
    parser.add_argument("--tolerance", type=float, default=None,
                        help="largest difference (default 1e-4; with --half 1e-3)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", default=False, help="replace an existing file")


def main(arguments) -> int:
    """Exit codes: 0 written, 1 the exported file gives other answers and was not kept, 2 bad input."""
    a, weights = arguments, Path(arguments.weights)
    out = Path(a.out) if a.out else weights.with_suffix("." + a.format)
    if missing := [n for n in NEEDS[a.format] if importlib.util.find_spec(n) is None]:
        raise InputError(f"--format {a.format} needs {', '.join(missing)}; pip install {' '.join(missing)}, or install "
                         'this project with its extra: pip install -e ".[export]"')  # fmt: skip
    if a.half and a.format == "onnx":
        raise InputError("--half is for safetensors and pth; an ONNX file is float32")
    if a.tolerance is None:
        a.tolerance = HALF_TOLERANCE if a.half else TOLERANCE
    if not a.tolerance > 0:
        raise InputError(f"--tolerance {a.tolerance}: must be above 0")
    if a.num_images < 2:
        raise InputError(f"--num_images {a.num_images}: a ranking needs at least 2")
    model, config = read_weights(weights)
    if out.exists() and out.samefile(weights):
        raise InputError(f"{out} is the file that is read; give another --out")
    if out.exists() and not a.overwrite:
        raise InputError(f"{out} is already there; give another --out, or --overwrite")
    size = (config.h, config.w)
    if a.images:
        chosen = find_images(a.images)
        chosen = chosen[:: max(1, len(chosen) // a.num_images)][: a.num_images]  # from everywhere in the list
        pixels = np.stack([decode(image.path, *size) for image in chosen])
        if len(pixels) < 2:
            raise InputError("--images gave one image; a ranking needs at least 2")
    else:
        with tempfile.TemporaryDirectory() as folder:
            pixels = demo_pixels(size, a.num_images, Path(folder))
    expected = reference(model, pixels, not a.no_flip)
    with writing(out):
        return write(out, a, model, config, weights, pixels, expected)


def write(out: Path, a, model: nn.Module, config: Config, weights: Path, pixels: np.ndarray, expected) -> int:
    metadata = {
        "made_by": f"python -m reid export --format {a.format}, commit {commit()}, torch {installed('torch')}",
        "weights_sha256": sha256(weights),
    }
    with atomic_file(out) as temporary:
        if a.format == "onnx":
            metadata |= {
                "config": json.dumps(config.to_json()),
                "input": f"{a.input}, RGB, {config.h} x {config.w} pixels (height x width), resized by a bilinear "
                "filter with antialias",
                "output": f"unit-length descriptors, {expected.shape[1]} numbers",
                "flip": "no" if a.no_flip else "mean of the features of image and mirror image",
                "batch_norm": "folded",
            }
            export_onnx(temporary, model, (config.h, config.w), a.input, not a.no_flip, metadata)
            got = run_onnx(temporary, pixels, a.input)
        else:
            write_plain(temporary, a.format, a.half, model, config, metadata)
            got = reference(read_weights(temporary)[0], pixels, not a.no_flip)
        difference, changes = parity(expected, got, SLACK * (HALF_TOLERANCE if a.half else TOLERANCE))
        print(f"{'images':<28}{len(pixels):>12}\n{'largest difference':<28}{difference:>12.2e}   allowed "
              f"{a.tolerance:.0e}\n{'changes of the ranking':<28}{changes:>12}   allowed 0")  # fmt: skip
        if difference > a.tolerance or changes:
            raise FloatingPointError("the exported file gives other answers than the weights, and was not kept")
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB, SHA-256 {sha256(out)}")
    return 0


def write_plain(path: Path, form: str, half: bool, model: nn.Module, config: Config, metadata: dict[str, str]) -> None:
    """The model as a file of ours, as safetensors or pth (`form`).

    half: without classifiers and without what only the training asked, and in float16 all but the small tensors, whose
    share of the size is little: batch norm's statistics reach beyond float16.
    """
    state, classes = model.state_dict(), model.num_classes
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
