"""python -m reid export: a model as one file for other programs."""

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from reid.commands.flags import add_flags, given_flags
from reid.config import Config
from reid.data.images import find_images
from reid.data.loader import decode
from reid.errors import CheckFailed, InputError
from reid.files import atomic_file, sha256, writing
from reid.inference.export import HALF_TOLERANCE, NEEDS, SLACK, TOLERANCE, demo_pixels, parity, reference, write_plain
from reid.inference.int8 import export_int8, wanted_calibration
from reid.inference.onnx_file import INPUTS, export_onnx, run_onnx
from reid.models.weights import read_weights
from reid.versions import commit, installed


def add_arguments(parser) -> None:
    add = parser.add_argument
    add_flags(parser, "export", needs_weights=True)
    add("--format", choices=tuple(NEEDS), required=True, help="write ONNX, safetensors, or a file like weights.pth")
    add("--precision", choices=("fp32", "int8"), default="fp32", help="onnx: quantise to int8 (default fp32)")
    add("--out", help="write this file (default: beside the weights, with the suffix of the format)")
    add(
        "--input",
        choices=INPUTS,
        default="nhwc",
        help="input of the ONNX file: uint8 RGB as nhwc or nchw, normalised in the graph; or normalised: "
        "float32 NCHW, normalised by the caller with ImageNet's mean and deviation (default nhwc)",
    )
    add("--no_flip", action="store_true", help="do not average with mirror images")
    add("--images", nargs="+", help="compare the descriptors of these images (default: drawn ones)")
    add("--num_images", type=int, default=32, help="compare on this number of images (default 32)")
    add("--half", action="store_true", help="safetensors and pth: omit the classifiers and store float16")
    add("--tolerance", type=float, help="allow this difference (default 1e-4; with --half 1e-3)")
    add("--overwrite", action="store_true", help="replace an existing file")


def main(arguments) -> int:
    """Exit codes: 0 written, 1 the exported file gives different results and was not kept, 2 bad input."""
    a, weights = arguments, Path(arguments.pretrained_weights_dir)
    check(a)
    out = Path(a.out) if a.out else weights.with_suffix("." + a.format)
    model, config = read_weights(weights)
    if out.exists() and out.samefile(weights):
        raise InputError(f"{out} is the input file; give another --out")
    if out.exists() and not a.overwrite:
        raise InputError(f"{out} already exists; give another --out, or --overwrite")
    how = wanted_calibration(given_flags(a), a.precision, weights)
    size = (config.h, config.w)
    pixels: Any = None if how else pixels_of(a, size)  # before a file is begun
    with writing(out), atomic_file(out) as temporary:
        if how:
            print(export_int8(temporary, model, size, a.input, not a.no_flip, about(a, config), how))
        else:
            write(temporary, a, model, config, pixels)
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB, SHA-256 {sha256(out)}")
    return 0


def check(a) -> None:
    """Raises InputError for flags that cannot be used; sets the default tolerance."""
    if missing := [name for name in NEEDS[a.format] if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"--format {a.format} needs {', '.join(missing)}; pip install {' '.join(missing)}, "
            'or install this project with its extra: pip install -e ".[export]"'
        )
    if a.precision == "int8" and (a.format != "onnx" or a.images or a.tolerance is not None):
        raise InputError("--precision int8 is for --format onnx, and is compared on --calibration images by --max_loss")
    if a.half and a.format == "onnx":
        raise InputError("--half is for safetensors and pth; an ONNX file is float32")
    if a.tolerance is None:
        a.tolerance = HALF_TOLERANCE if a.half else TOLERANCE
    if not a.tolerance > 0:
        raise InputError(f"--tolerance {a.tolerance}: must be above 0")
    if a.num_images < 2:
        raise InputError(f"--num_images {a.num_images}: a ranking needs at least 2")


def pixels_of(a, size: tuple[int, int]) -> np.ndarray:
    """uint8 (N, H, W, 3) of the images to compare on; chosen evenly from --images, else drawn."""
    if not a.images:
        with tempfile.TemporaryDirectory() as folder:
            return demo_pixels(size, a.num_images, Path(folder))
    chosen = find_images(a.images)
    chosen = chosen[:: max(1, len(chosen) // a.num_images)][: a.num_images]
    if len(chosen) < 2:
        raise InputError("--images gave one image; a ranking needs at least 2")
    return np.stack([decode(image.path, *size) for image in chosen])


def about(a, config: Config) -> dict[str, str]:
    """The metadata of the file."""
    metadata = {
        "made_by": f"python -m reid export --format {a.format}, commit {commit()}, torch {installed('torch')}",
        "weights_sha256": sha256(Path(a.pretrained_weights_dir)),
    }
    if a.format == "onnx":
        metadata |= {
            "config": json.dumps(config.to_json()),
            "input": f"{a.input}, RGB, {config.h} x {config.w} pixels (height x width), resized by a bilinear "
            "filter with antialias",
            "output": "unit-length descriptors",
            "flip": "no" if a.no_flip else "mean of the features of image and mirror image",
            "batch_norm": "folded",
        }
    return metadata


def write(path: Path, a, model: nn.Module, config: Config, pixels: np.ndarray) -> None:
    """Writes the file and compares its descriptors with the model's. Raises CheckFailed if they differ."""
    expected, metadata = reference(model, pixels, not a.no_flip), about(a, config)
    if a.format == "onnx":
        metadata["output"] += f", {expected.shape[1]} numbers"
        export_onnx(path, model, (config.h, config.w), a.input, not a.no_flip, metadata)
        got = run_onnx(path, pixels, a.input)
    else:
        write_plain(path, a.format, a.half, model, config, metadata)
        got = reference(read_weights(path)[0], pixels, not a.no_flip)
    difference, changes = parity(expected, got, SLACK * (HALF_TOLERANCE if a.half else TOLERANCE))
    print(f"{'images':<28}{len(pixels):>12}")
    print(f"{'largest difference':<28}{difference:>12.2e}   allowed {a.tolerance:.0e}")
    print(f"{'changes of the ranking':<28}{changes:>12}   allowed 0")
    if difference > a.tolerance or changes:
        raise CheckFailed("the exported file gives different results from the weights, and was not kept")
