"""Engines: a model that turns uint8 images into descriptors, run by PyTorch, ONNX Runtime or OpenVINO.

An engine is called with images (n, 3, H, W) uint8 of the model's size and returns descriptors (n, S, D) float32:
the mean of the features of image and mirror image (with `flip`), scaled so that their S x D numbers have length 1.

plain     the model as it is trained, in eval mode; for comparison
torch     folded batch norms, channels-last layout (reid/inference/prepare.py)
onnx      ONNX Runtime on the CPU
openvino  OpenVINO on the CPU, in float32 or, where the CPU computes it, bf16

onnx and openvino also run int8 (reid/inference/int8.py). auto times the engines that can run, once per weights file and
machine, and takes the fastest; for few images it takes torch.

Both CPU engines read one ONNX file, which is written once per weights file and settings and kept in the cache folder
of PyTorch, as are the measured speeds. Each time it is opened, its descriptors of two images are compared with those of
the plain model.
"""

import hashlib
import importlib.util
import json
import logging
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
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
from reid.files import atomic_file, locked, write_json, writing
from reid.inference.int8 import Calibration, export_int8, read_cost
from reid.inference.onnx_file import export_onnx
from reid.inference.prepare import prepare
from reid.processes import world
from reid.versions import installed

logger = logging.getLogger(__name__)

PACKAGES = {"openvino": ("onnx", "onnxscript", "openvino"), "onnx": ("onnx", "onnxscript", "onnxruntime")}
CPU = torch.device("cpu")
WORTH = 2_000  # images; below, writing the ONNX file takes longer than it saves
BOTH = 8  # images; up to it one forward pass of images and mirror images is faster than two (docs/performance.md)
TIMED = 4  # batches per engine, of which the fastest counts
# difference of a descriptor's numbers from those of the plain model
ALLOWED = {"fp32": 1e-4, "bf16": 2e-2, "int8": 5e-2}


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

    count: about how many images will come, in batches of batch_size, for engine auto. calibration: for int8.
    """

    engine: str = "torch"
    precision: str = "fp32"  # as resolved
    flip: bool = True
    device: torch.device = CPU
    sha256: str = ""
    count: int = 0
    batch_size: int = 64
    calibration: Calibration | None = None

    @property
    def many(self) -> bool:
        """Whether auto measures."""
        return self.engine == "auto" and self.count >= WORTH


@dataclass(frozen=True)
class TorchEngine:
    """A model in eval mode on its device.

    both: mirror images go through the network with the images if there are at most this many.
    """

    model: nn.Module
    device: torch.device = CPU
    flip: bool = True
    precision: str = "fp32"
    name: str = "plain"
    both: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.model.eval()
        with torch.inference_mode(), autocast(self.precision, self.device):
            features = self.features(normalise(images.to(self.device)))
            return features / features.flatten(1).norm(dim=1)[:, None, None]

    def features(self, pixels: Tensor) -> Tensor:
        """The mean over images and mirror images (with `flip`); not of unit length."""
        if not self.flip:
            return self.model(pixels).float()
        if len(pixels) <= self.both:
            first, mirrored = self.model(torch.cat([pixels, pixels.flip(3)])).float().tensor_split(2)
        else:
            first, mirrored = (self.model(x).float() for x in (pixels, pixels.flip(3)))
        return (first + mirrored) / 2


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
    """The model of input `size` (h, w), ready to run. Logs which engine `auto` means, if there is a choice.

    Raises InputError for an engine that is not installed or cannot run as wanted, and for int8 that loses too much;
    CheckFailed for an engine whose descriptors differ from those of the plain model.
    """
    names = candidates(wanted)
    name = names[0] if len(names) == 1 else fastest(model, size, wanted, names)
    engine = opened(model, size, wanted, name)
    if wanted.precision == "int8":
        logger.info(str(read_cost(cached_file(model, size, wanted))))
    return engine


def opened(model: nn.Module, size: tuple[int, int], wanted: Wanted, name: str) -> Engine:
    """The engine of this name. Raises the errors of open_engine."""
    device, flip, precision = wanted.device, wanted.flip, wanted.precision
    if name == "plain":
        return TorchEngine(model.to(device), device, flip, precision)
    if name == "torch":
        ready = prepare(model, size, precision).to(device)
        return TorchEngine(ready, device, flip, precision, name, BOTH)
    return open_onnx(model, size, name, wanted)


def candidates(wanted: Wanted) -> list[str]:
    """The engines among which `wanted` chooses: one, or for auto and many images all that can run.

    Raises InputError.
    """
    name, int8 = wanted.engine, wanted.precision == "int8"
    if name not in ENGINES:
        raise InputError(f"engine {name!r} is unknown; choose from {', '.join(ENGINES)}")
    if name == "auto" and (wanted.many or int8):
        able = [n for n in PACKAGES if not refusal(n, wanted) and not missing(n)]
        return (able or ["onnx"]) if int8 else ["torch", *able]
    if name == "auto":
        return ["torch"]
    if name not in PACKAGES and int8:
        raise InputError(f"--engine {name} does not compute in int8; use --engine onnx or openvino")
    return [name]


def check_able(name: str, wanted: Wanted) -> None:
    """Raises InputError if a CPU engine is not installed or cannot run as wanted."""
    if reason := refusal(name, wanted):
        raise InputError(f"--engine {name} {reason}")
    lacking = missing(name)
    if wanted.precision == "int8" and importlib.util.find_spec("onnxruntime") is None:
        lacking = [*lacking, "onnxruntime"]  # its quantiser
    if lacking := sorted(set(lacking)):
        raise InputError(
            f"--engine {name} needs {', '.join(lacking)}; pip install {' '.join(lacking)}, "
            'or install this project with its extra: pip install -e ".[engines]"'
        )
    if wanted.precision == "int8" and wanted.calibration is None:
        raise InputError("int8 needs calibration images; in Python give precision=Calibration(images)")


def fastest(model: nn.Module, size: tuple[int, int], wanted: Wanted, names: Sequence[str]) -> str:
    """The engine with the most images per second on this machine, measured once and kept beside the ONNX file."""
    path = cached_file(model, size, wanted).with_suffix(".json")
    packages = [installed(package) for package in ("torch", "onnxruntime", "openvino")]
    machine = [platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability(), platform.node()]
    facts = [*machine, *packages, torch.get_num_threads(), wanted.batch_size, wanted.precision, *names]
    key, known, when = json.dumps(facts), {}, "measured before"
    with suppress(OSError, ValueError):  # missing or damaged: measured again
        known = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(known, dict):
        known = {}
    if key not in known:
        known[key], when = measured(model, size, wanted, names), "measured now"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
    speeds = known[key]
    name = max(speeds, key=speeds.__getitem__)
    shown = ", ".join(f"{n} {speed:.0f}" for n, speed in speeds.items())
    logger.info(f"engine {name} is the fastest here ({shown} images/s, {when})")
    return name


def measured(model: nn.Module, size: tuple[int, int], wanted: Wanted, names: Sequence[str]) -> dict[str, float]:
    """Images per second of each engine that gives the right answers, by turns on one batch of noise."""
    engines = {}
    for name in names:
        try:
            engines[name] = opened(model, size, wanted, name)
        except CheckFailed as e:
            logger.warning(str(e))
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (wanted.batch_size, *size, 3), dtype=torch.uint8, generator=noise)
    least = dict.fromkeys(engines, float("inf"))
    for turn in range(TIMED + 1):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(pixels.permute(0, 3, 1, 2))
            if turn:  # the first call allocates
                least[name] = min(least[name], time.perf_counter() - start)
    if not engines:
        raise CheckFailed("no engine can run this model; use --engine torch")
    return {name: wanted.batch_size / seconds for name, seconds in least.items()}


def refusal(name: str, wanted: Wanted) -> str:
    """Why a CPU engine cannot run as wanted; "" if it can."""
    if wanted.device.type != "cpu":
        return f"runs on the CPU, not on {wanted.device}; add --device cpu, or use --engine torch"
    if world().size > 1:
        return "runs in one process; use --engine torch"
    if name == "onnx" and wanted.precision == "bf16":
        return "computes in float32 and int8; use --precision fp32, or --engine openvino"
    return ""


def missing(name: str) -> list[str]:
    """The packages that an engine needs and that are not installed."""
    return [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]


def open_onnx(model: nn.Module, size: tuple[int, int], name: str, wanted: Wanted) -> Engine:
    """A CPU engine on the cached ONNX file, which is written first if it is not there, or gives other answers."""
    check_able(name, wanted)
    plain = TorchEngine(model, flip=wanted.flip)
    images = torch.from_numpy(np.stack([resized(draw(pid, 0, 0), *size) for pid in range(2)])).permute(0, 3, 1, 2)
    expected = plain(images)
    path = cached_file(model, size, wanted)
    with writing(path), locked(path):
        for write in (not path.exists(), True):
            if write:
                write_file(path, model, size, wanted)
            try:
                engine = OnnxEngine(name, COMPILERS[name](path, wanted.precision), tuple(expected.shape[1:]))
                difference = float((engine(images) - expected).abs().max())
                cost = read_cost(path) if wanted.precision == "int8" else None
            except Exception as e:  # both packages raise plain RuntimeErrors of their own for damaged files
                difference, reason = float("inf"), f"{type(e).__name__}: {e}"
            else:
                reason = f"its descriptors differ by {difference:.1e}"
            if difference < ALLOWED[wanted.precision]:
                if cost and wanted.calibration:
                    cost.check(wanted.calibration.max_loss)
                return engine
            if write:
                break
            logger.warning(f"{path} cannot be used ({reason}); it is written again")
    raise CheckFailed(f"--engine {name} cannot run this model: {reason}; use --engine torch")


def write_file(path: Path, model: nn.Module, size: tuple[int, int], wanted: Wanted) -> None:
    logger.info(f"writing {path}; later commands use it again")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"weights_sha256": wanted.sha256}
    with atomic_file(path) as temporary:
        if wanted.precision == "int8" and wanted.calibration:
            export_int8(temporary, model, size, "nhwc", wanted.flip, metadata, wanted.calibration)
        else:
            export_onnx(temporary, model, size, "nhwc", wanted.flip, metadata)


def cached_file(model: nn.Module, size: tuple[int, int], wanted: Wanted) -> Path:
    """The place of the ONNX file, named after everything that it depends on."""
    facts: dict[str, Any] = {
        "weights": wanted.sha256 or digest_of(model),
        "size": size,
        "flip": wanted.flip,
        "versions": [installed(package) for package in ("torch", "onnx", "onnxscript")],
    }
    if wanted.precision == "int8" and wanted.calibration:
        facts |= {"calibration": wanted.calibration.digest, "onnxruntime": installed("onnxruntime")}
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
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",  # one batch after the other, on all threads
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda pixels: compiled(pixels)[0]


COMPILERS = {"onnx": compile_onnx, "openvino": compile_openvino}
