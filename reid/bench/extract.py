"""Extraction of descriptors with mirror images: engines and precisions, latency, and the share of each stage."""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from reid.bench.measure import check_close, table
from reid.bench.train import timed
from reid.config import Config
from reid.data.demo import draw
from reid.data.loader import decode
from reid.device import find_hardware, set_up
from reid.files import sha256
from reid.inference.describe import describe
from reid.inference.engines import Engine, TorchEngine, Wanted, missing, open_engine, refusal
from reid.models import build_model
from reid.models.weights import read_weights

PLAIN = "plain, fp32, channels first"
RUNS = 50  # of one image, for the latency


def run(a) -> Iterator[str]:
    hardware = find_hardware(a.device, tuple(a.gpus))
    set_up(hardware, "fp32")  # each engine has its own precision
    model, config, wanted = subject(a, hardware.device)
    size = (config.h, config.w)
    engines: dict[str, Engine] = {PLAIN: TorchEngine(copy.deepcopy(model).to(hardware.device), hardware.device)}
    for name in ("torch", "onnx", "openvino"):
        for precision in ("fp32", "bf16") if hardware.native_bf16 else ("fp32",):
            asked = replace(wanted, engine=name, precision=precision)
            if name == "torch" or not (refusal(name, asked) or missing(name)):
                engines[f"{name}, {precision}"] = open_engine(copy.deepcopy(model), size, asked)
    threads = f"{torch.get_num_threads()} threads" if hardware.device.type == "cpu" else hardware.name
    where = f"{config.backbone}, {size[0]}x{size[1]}, {threads}"
    torch.manual_seed(0)
    for count in sorted({1, min(8, a.batch_size), a.batch_size}):
        pixels = torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        rows = timed({n: form(e, pixels, n == PLAIN) for n, e in engines.items()}, a.repeat, hardware.device)
        check_close(rows, [name for name in engines if "fp32" in name], 1e-4)
        yield table(f"extraction, {where}, batch {count}", rows, PLAIN)
        for name, row in rows.items():
            yield f"{name}: {count / row.seconds:.1f} images/s"
    yield latency(engines, size)
    yield stages(list(engines.values())[-1], size, a.batch_size)


def subject(a, device: torch.device) -> tuple[nn.Module, Config, Wanted]:
    """The model of --weights, or one with random weights."""
    if a.weights:
        path = Path(a.weights)
        model, config = read_weights(path)
        digest = sha256(path)
    else:
        torch.manual_seed(0)
        config, digest = Config(backbone=a.backbone, h=a.h, w=a.w), ""
        model = build_model(config, 0)
    return model.eval(), config, Wanted(device=device, sha256=digest)


def form(engine: Engine, pixels: Tensor, plain: bool) -> Callable:
    """One batch through `describe`; `plain` in the layout of a usual loader."""
    images = pixels.contiguous() if plain else pixels
    return lambda: torch.cat(list(describe(engine, [images]))).cpu()


def latency(engines: dict[str, Engine], size: tuple[int, int]) -> str:
    """Milliseconds of a single image: the first call, then the median and the 99th percentile of RUNS calls."""
    image = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    lines = [f"latency of one image{'median':>19}{'99 %':>9} ms"]
    for name, engine in engines.items():
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            engine(image).cpu()
            times.append(1e3 * (time.perf_counter() - start))
        lines.append(f"{name:<30}{np.median(times):>9.1f}{np.percentile(times, 99):>9.1f}")
    return "\n".join(lines)


def stages(engine: Engine, size: tuple[int, int], count: int) -> str:
    """What each stage of one batch would take alone; in a command they overlap."""
    with tempfile.TemporaryDirectory() as name:
        paths = [str(Path(name, f"{i}.jpg")) for i in range(count)]
        for i, path in enumerate(paths):
            draw(i, 0, 0).save(path)
        start = time.perf_counter()
        pixels = np.stack([decode(path, *size) for path in paths])
        decoded = time.perf_counter()
        found = engine(torch.from_numpy(pixels).permute(0, 3, 1, 2)).cpu()
        described = time.perf_counter()
        np.save(Path(name, "features.npy"), found.numpy())
        written = time.perf_counter()
    spans = {"decode and resize": decoded - start, engine.name: described - decoded, "write": written - described}
    total = sum(spans.values())
    return "\n".join(["stages of one batch", *(f"{n:<30}{s / total:>9.0%}" for n, s in spans.items())])
