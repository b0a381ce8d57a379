"""Post-training int8: an ONNX file with quantised convolutions, calibrated on images, and its measured cost.

Weights are symmetric int8 with a scale per output channel, activations uint8 with a scale per tensor, from the range
over the calibration images. The first convolutions lose most of the accuracy and stay in float32, as do the heads.
Weights use 7 bits, because CPUs without VNNI add pairs of products in 16 bits.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from reid.config import Config
from reid.data.images import find_images
from reid.data.loader import decode
from reid.data.prepare import open_dataset
from reid.data.records import Image, combine, content_of
from reid.errors import InputError
from reid.evaluation.ranking import rank, same_person
from reid.inference.onnx_file import as_input, export_onnx
from reid.models.weights import read_weights

LEAST, CALIBRATED, COMPARED = 32, 128, 512  # images: needed, used for the ranges, used for the cost
BATCH = 16
FLOAT_CONVOLUTIONS = 4  # docs/performance.md has the measurements
LEAST_COSINE = 0.99  # without labels
ONLY_INT8 = ("calibration", "max_loss", "dataset_path")  # flags
COST = "int8_cost"  # key in the metadata of the file


@dataclass(frozen=True)
class Calibration:
    """Images for calibration, with identities where known, and the largest loss in percentage points of mAP."""

    images: Sequence[Image]
    max_loss: float = Config.max_loss

    def __post_init__(self):
        if len(self.images) < LEAST:
            raise InputError(
                f"int8 needs at least {LEAST} calibration images, but got {len(self.images)}; give more with "
                "--calibration, or use --precision fp32"
            )

    @property
    def chosen(self) -> list[Image]:
        """The images that give the ranges, evenly spaced."""
        return list(self.images[:: max(1, len(self.images) // CALIBRATED)][:CALIBRATED])

    @property
    def compared(self) -> list[Image]:
        """The images that give the cost: those of the last identities."""
        return sorted(self.images, key=lambda image: image.pid)[-COMPARED:]

    @property
    def labelled(self) -> bool:
        """Whether the cost can be measured as mAP: all compared images have identities, and some a match."""
        pids, camids = labels_of(self.compared)
        return bool((pids >= 0).all()) and not same_person(pids, pids, camids, camids).junk.all()

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over the images and their labels, on which the file and its cost depend."""
        images = [*self.chosen, *self.compared]
        labels = json.dumps([image[1:] for image in images])
        return hashlib.sha256((content_of(images) + labels).encode()).hexdigest()


@dataclass(frozen=True)
class Cost:
    """float32 and int8 on the same images; mAP and Rank-1 in per cent, None without identities that match."""

    images: int
    cosine: float  # mean over the images
    nearest: float  # fraction of images with the same nearest other image
    mean_ap: tuple[float, float] | None = None
    rank1: tuple[float, float] | None = None

    def check(self, max_loss: float) -> None:
        """Raises InputError if too much is lost."""
        if self.mean_ap is None and not self.cosine >= LEAST_COSINE:
            lost = f"its mean cosine to float32 is {self.cosine:.4f}, below {LEAST_COSINE}"
        elif self.mean_ap is not None and not self.mean_ap[0] - self.mean_ap[1] <= max_loss:
            lost = f"it loses {self.mean_ap[0] - self.mean_ap[1]:.2f} mAP, more than --max_loss {max_loss:g}"
        else:
            return
        raise InputError(f"int8 is refused: {lost}; use --precision fp32, or other --calibration images")

    def __str__(self) -> str:
        scores = ""
        for name, pair in (("mAP", self.mean_ap), ("Rank-1", self.rank1)):
            if pair:
                scores += f"{name} {pair[1]:.2f} instead of {pair[0]:.2f} %, "
        return (
            f"int8 on {self.images} calibration images: {scores}cosine to float32 {self.cosine:.4f}, the same nearest "
            f"image for {self.nearest:.1%}"
        )


def calibration_of(sources: Sequence[str], weights: Path, dataset_path: str, max_loss: float) -> Calibration:
    """The images of `sources` (folders, patterns, lists), else the training images of the datasets of `weights`.

    Raises InputError, MissingInput.
    """
    if sources:
        return Calibration(find_images(sources), max_loss)
    _, trained = read_weights(weights)
    try:
        datasets = [open_dataset(name, dataset_path, trained.split) for name in trained.dataset_type]
    except InputError as e:
        raise InputError(
            f"int8 is calibrated on training images, and those of {weights} cannot be read ({e}); name images with "
            "--calibration FOLDER, or the folder of the datasets with --dataset_path"
        ) from e
    return Calibration(combine(datasets).trainval, max_loss)


def wanted_calibration(
    given: dict[str, Any], precision: str, weights: Path, only_int8: Sequence[str] = ONLY_INT8
) -> Calibration | None:
    """The calibration that the `given` flags of a command mean; None if `precision` is not int8.

    only_int8: the flags that the command uses for nothing else. Raises InputError if they are given without int8.
    """
    if precision == "int8":
        most, folder = (given.get(name, getattr(Config, name)) for name in ("max_loss", "dataset_path"))
        how = calibration_of(given.get("calibration", ()), weights, folder, most)
        if "max_loss" in given and not how.labelled:
            raise InputError(
                f"--max_loss {most:g} needs calibration images with identities, of which some match in another camera; "
                "give a table with columns path, pid and camid, or remove --max_loss"
            )
        return how
    for name in only_int8:
        if name in given:
            raise InputError(f"--{name} is for int8; add --precision int8, or remove it")
    return None


def export_int8(
    path: Path, model: nn.Module, size: tuple[int, int], inputs: str, flip: bool, metadata: dict, how: Calibration
) -> Cost:
    """Writes the model as an int8 ONNX file. Raises InputError if it loses too much."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder, "fp32.onnx")
        export_onnx(full, model, size, inputs, flip, {"onnx.quant.pre_process": "onnxruntime.quant"})
        quantise(full, path, pixels_of(how.chosen, size), inputs)
        pixels = pixels_of(how.compared, size)
        cost = cost_of(descriptors(full, pixels, inputs), descriptors(path, pixels, inputs), how.compared)
    cost.check(how.max_loss)
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, metadata | {COST: json.dumps(asdict(cost))})
    onnx.save(proto, path)
    return cost


def read_cost(path: Path) -> Cost:
    """The cost in an int8 file that this package wrote."""
    import onnx

    found = {p.key: p.value for p in onnx.load(path).metadata_props}
    return Cost(**json.loads(found[COST]))


def pixels_of(images: Sequence[Image], size: tuple[int, int]) -> np.ndarray:
    """uint8 (N, H, W, 3)."""
    return np.stack([decode(image.path, *size) for image in images])


def batches(pixels: np.ndarray, inputs: str) -> Iterator[dict[str, Any]]:
    for start in range(0, len(pixels), BATCH):
        yield {"images": as_input(pixels[start : start + BATCH], inputs)}


def quantise(full: Path, path: Path, pixels: np.ndarray, inputs: str) -> None:
    """Writes `path`, the float32 file `full` with quantised convolutions."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = batches(pixels, inputs)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rest, None)

    nodes = [node for node in onnx.load(full).graph.node if node.op_type == "Conv"]
    quantize_static(
        full,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Clip", "Relu", "Add", "MaxPool"],
        nodes_to_exclude=[node.name for node in [*nodes[:FLOAT_CONVOLUTIONS], *heads_of(full)]],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def heads_of(path: Path) -> list[Any]:
    """The nodes after the last convolution and its activation."""
    import onnx

    nodes = list(onnx.load(path).graph.node)
    last = max(i for i, node in enumerate(nodes) if node.op_type == "Conv")
    return nodes[last + 1 :]


def descriptors(path: Path, pixels: np.ndarray, inputs: str) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, batch)[0] for batch in batches(pixels, inputs)])


def labels_of(images: Sequence[Image]) -> tuple[np.ndarray, np.ndarray]:
    """(pids, camids) of the images; without cameras each image is one of its own."""
    pids, camids = (np.array(column) for column in list(zip(*images))[1:])
    return pids, np.arange(len(images)) if (camids < 0).any() else camids


def cost_of(expected: np.ndarray, found: np.ndarray, images: Sequence[Image]) -> Cost:
    """The cost of the descriptors `found` (N, F) instead of `expected`; images of a camera are not compared."""
    near = []
    for features in (expected, found):
        product = features @ features.T
        np.fill_diagonal(product, -np.inf)
        near.append(product.argmax(1))
    cosine, nearest = float((expected * found).sum(1).mean()), float((near[0] == near[1]).mean())
    pids, camids = labels_of(images)
    pairs = same_person(pids, pids, camids, camids)
    if (pids < 0).any() or pairs.junk.all():
        return Cost(len(images), cosine, nearest)
    ranked = [rank(-f @ f.T, pids, pids, camids, camids) for f in (expected, found)]
    scores = [(100 * r.mean_ap, 100 * float(r.cmc[0])) for r in ranked]
    return Cost(len(images), cosine, nearest, *zip(*scores))
