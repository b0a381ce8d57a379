"""Engines: a model that turns uint8 images into descriptors, run by PyTorch, ONNX Runtime or OpenVINO.

An engine is called with images (n, 3, H, W) uint8 of the model's size and returns descriptors (n, S, D) float32:
the mean of the features of image and mirror image (with `flip`), scaled so that their S x D numbers have length 1.

plain     the model as it is trained, in eval mode; for comparison
torch     folded batch norms, channels-last layout (reid/inference/prepare.py)
onnx      ONNX Runtime on the CPU
openvino  OpenVINO on the CPU, in float32 or, where the CPU computes it, bf16

Both CPU engines read one ONNX file, which is written once per weights file and settings and kept in the cache folder
of PyTorch. Each time it is opened, its descriptors of two images are compared with those of the plain model.
"""

import hashlib
import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from reid.config import ENGINES
from reid.data.demo import draw
from reid.data.loader import resized
from reid.data.transforms import normalise
from reid.device import autocast
from reid.errors import CheckFailed, InputError
from reid.files import atomic_file, locked, writing
from reid.inference.onnx_file import export_onnx
from reid.inference.prepare import prepare
from reid.processes import world
from reid.versions import installed

logger = logging.getLogger(__name__)

PACKAGES = {"openvino": ("onnx", "onnxscript", "openvino"), "onnx": ("onnx", "onnxscript", "onnxruntime")}
CPU = torch.device("cpu")
WORTH = 2_000  # images; below, writing the ONNX file takes longer than it saves
ALLOWED = {"fp32": 1e-4, "bf16": 2e-2}  # difference of a descriptor's numbers from those of the plain model


class Engine(Protocol):
    """Images (n, 3, H, W) uint8 -> descriptors (n, S, D) float32 of unit length."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Wanted:
    """How a model is to run. sha256: hex digest of its weights file, under which an ONNX file is kept.

    count: about how many images will come, for engine auto.
    """

    engine: str = "torch"
    precision: str = "fp32"  # as resolved
    flip: bool = True
    device: torch.device = CPU
    sha256: str = ""
    count: int = 0


@dataclass(frozen=True)
class TorchEngine:
    """A model in eval mode on its device."""

    model: nn.Module
    device: torch.device = CPU
    flip: bool = True
    precision: str = "fp32"
    name: str = "plain"

    def __call__(self, images: Tensor) -> Tensor:
        self.model.eval()
        with torch.inference_mode(), autocast(self.precision, self.device):
            pixels = normalise(images.to(self.device))
            features = self.model(pixels).float()
            if self.flip:
                features = (features + self.model(pixels.flip(3)).float()) / 2
            return features / features.flatten(1).norm(dim=1)[:, None, None]


@dataclass(frozen=True)
class OnnxEngine:
    """A compiled ONNX file. run: (n, H, W, 3) uint8 -> (n, S x D) float32."""

    name: str
    run: Any
    slots: tuple[int, ...]  # (S, D)
    device: torch.device = CPU

    def __call__(self, images: Tensor) -> Tensor:
        pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        if not len(pixels):
            return torch.empty(0, *self.slots)
        return torch.from_numpy(self.run(pixels)).view(-1, *self.slots)


def open_engine(model: nn.Module, size: tuple[int, int], wanted: Wanted) -> Engine:
    """The model of input `size` (h, w), ready to run. Logs which engine `auto` means.

    Raises InputError for an engine that is not installed or cannot run as wanted, CheckFailed for one whose
    descriptors differ from those of the plain model.
    """
    name = resolve_engine(wanted)
    device, flip, precision = wanted.device, wanted.flip, wanted.precision
    if name == "plain":
        return TorchEngine(model.to(device), device, flip, precision)
    if name == "torch":
        ready = prepare(model, size, precision).to(device)
        return TorchEngine(ready, device, flip, precision, name)
    return open_onnx(model, size, name, wanted)


def resolve_engine(wanted: Wanted) -> str:
    """The engine's name; auto means the fastest one that is installed and worth its preparation.

    Raises InputError.
    """
    name = wanted.engine
    if name not in ENGINES:
        raise InputError(f"engine {name!r} is unknown; choose from {', '.join(ENGINES)}")
    if name == "auto":
        able = wanted.count >= WORTH and not refusal("openvino", wanted)
        name = next((n for n in PACKAGES if able and not refusal(n, wanted) and not missing(n)), "torch")
        if able:
            logger.info(f"engine {name}")
    elif name in PACKAGES:
        if reason := refusal(name, wanted):
            raise InputError(f"--engine {name} {reason}")
        if lacking := missing(name):
            raise InputError(
                f"--engine {name} needs {', '.join(lacking)}; pip install {' '.join(lacking)}, "
                'or install this project with its extra: pip install -e ".[engines]"'
            )
    return name


def refusal(name: str, wanted: Wanted) -> str:
    """Why a CPU engine cannot run as wanted; "" if it can."""
    if wanted.device.type != "cpu":
        return f"runs on the CPU, not on {wanted.device}; add --device cpu, or use --engine torch"
    if world().size > 1:
        return "runs in one process; use --engine torch"
    if name == "onnx" and wanted.precision != "fp32":
        return "computes in float32; use --precision fp32, or --engine openvino"
    return ""


def missing(name: str) -> list[str]:
    """The packages that an engine needs and that are not installed."""
    return [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]


def open_onnx(model: nn.Module, size: tuple[int, int], name: str, wanted: Wanted) -> Engine:
    """A CPU engine on the cached ONNX file, which is written first if it is not there, or gives other answers."""
    plain = TorchEngine(model, flip=wanted.flip)
    images = torch.from_numpy(np.stack([resized(draw(pid, 0, 0), *size) for pid in range(2)])).permute(0, 3, 1, 2)
    expected = plain(images)
    path = cached_file(model, size, wanted)
    with writing(path), locked(path):
        for write in (not path.exists(), True):
            if write:
                logger.info(f"writing {path}; later commands use it again")
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(path) as temporary:
                    export_onnx(temporary, model, size, "nhwc", wanted.flip, {"weights_sha256": wanted.sha256})
            try:
                engine = OnnxEngine(name, COMPILERS[name](path, wanted.precision), tuple(expected.shape[1:]))
                difference = float((engine(images) - expected).abs().max())
            except Exception as e:  # both packages raise plain RuntimeErrors of their own for damaged files
                difference, reason = float("inf"), f"{type(e).__name__}: {e}"
            else:
                reason = f"its descriptors differ by {difference:.1e}"
            if difference < ALLOWED[wanted.precision]:
                return engine
            if write:
                break
            logger.warning(f"{path} cannot be used ({reason}); it is written again")
    raise CheckFailed(f"--engine {name} cannot run this model: {reason}; use --engine torch")


def cached_file(model: nn.Module, size: tuple[int, int], wanted: Wanted) -> Path:
    """The place of the ONNX file, named after everything that it depends on."""
    facts = {
        "weights": wanted.sha256 or digest_of(model),
        "size": size,
        "flip": wanted.flip,
        "versions": [installed(package) for package in ("torch", "onnx", "onnxscript")],
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Path(torch.hub.get_dir()).parent / "rrid" / f"{key[:32]}.onnx"


def digest_of(model: nn.Module) -> str:
    """Hex SHA-256 over the model's tensors, for a model without a file."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(name.encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def compile_onnx(path: Path, precision: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"images": pixels})[0]


def compile_openvino(path: Path, precision: str) -> Any:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",  # one batch after the other, on all threads
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda pixels: compiled(pixels)[0]


COMPILERS = {"onnx": compile_onnx, "openvino": compile_openvino}
