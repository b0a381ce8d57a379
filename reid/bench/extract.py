"""Extraction of descriptors with mirror images: engines and precisions, single images, and the share of each stage.

"bare" rows call ONNX Runtime and OpenVINO as another program would: on images that are already normalised float32,
with the default settings of the package. ONNX files are written to a temporary folder.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from reid.bench.measure import check_close, resident, restart_peak, table
from reid.bench.train import timed
from reid.config import Config
from reid.data.demo import draw
from reid.data.loader import ImageStore, in_order, open_image, read, resized
from reid.data.records import Image
from reid.device import Hardware, find_hardware, set_up
from reid.evaluation.record import Record
from reid.evaluation.store import FeaturesWriter
from reid.files import sha256
from reid.inference.describe import describe, extract_file
from reid.inference.engines import PACKAGES, Engine, TorchEngine, Wanted, missing, open_engine, refusal
from reid.inference.int8 import LEAST, Calibration
from reid.inference.onnx_file import as_input, export_onnx
from reid.models import build_model
from reid.models.weights import read_weights

PLAIN = "plain, fp32, channels first"
RUNS, SECONDS = 200, 5  # of one image; at most
BATCHES, STAGES = 4, ("decode", "resize", "forward", "write")

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A model in eval mode, its input size (h, w), and the engines to measure."""

    model: nn.Module
    size: tuple[int, int]
    wanted: Mapping[str, Wanted]

    def opened(self, name: str) -> Engine:
        model, wanted = copy.deepcopy(self.model), self.wanted[name]
        if name == PLAIN:
            return TorchEngine(model.to(wanted.device), wanted.device)
        return open_engine(model, self.size, wanted)


def run(a) -> Iterator[str]:
    hardware = find_hardware(a.device, tuple(a.gpus))
    set_up(hardware, "fp32")  # each engine has its own precision
    with tempfile.TemporaryDirectory() as name, cache_in(Path(name)):
        images = drawn(Path(name), max(LEAST, BATCHES * a.batch_size))
        subject, what = subject_of(a, hardware, Calibration(images[:LEAST], max_loss=100))
        engines: dict[str, Engine] = {}
        most = torch.get_num_threads()
        for threads in sorted({1, most}) if hardware.device.type == "cpu" else [most]:
            torch.set_num_threads(threads)
            where = f"{what}, {hardware.name}, {threads} threads"
            yield from single_images(subject, engines, f"one image at a time, {where}")
        bare = bare_sessions(subject, Path(name)) if hardware.device.type == "cpu" else {}
        for count in sorted({1, min(8, a.batch_size), a.batch_size}):
            times = a.batch_size // count  # a short call would wait for the threads of the engine before it
            rows = timed(variants(engines, bare, subject.size, count, times), a.repeat, hardware.device)
            check_close(rows, [name for name in rows if "fp32" in name], 1e-4)
            yield table(f"extraction, {where}, {times} batches of {count}", rows, PLAIN)
            yield from (f"{name}: {times * count / row.seconds:.1f} images/s" for name, row in rows.items())
        yield from stages(engines, subject.size, images[: BATCHES * a.batch_size], a.batch_size)


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Engines keep their ONNX files in this folder."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(folder / "hub")
    try:
        yield
    finally:
        torch.hub.set_dir(before)


def drawn(folder: Path, count: int) -> list[Image]:
    """Images of the demo dataset, two for each person."""
    images = [Image(str(folder / f"{i}.jpg"), i // 2, i % 2) for i in range(count)]
    for image in images:
        draw(image.pid, image.camid, 0).save(image.path)
    return images


def subject_of(a, hardware: Hardware, calibration: Calibration) -> tuple[Subject, str]:
    """The model of --weights, or one with random weights; and its name."""
    if a.weights:
        model, config = read_weights(Path(a.weights))
        digest = sha256(Path(a.weights))
    else:
        torch.manual_seed(0)
        config, digest = Config(backbone=a.backbone, h=a.h, w=a.w), ""
        model = build_model(config, 0)
    wanted = Wanted(device=hardware.device, sha256=digest)
    precisions = ("fp32", *(["bf16"] if hardware.native_bf16 else []))
    able = {PLAIN: replace(wanted, engine="plain")}
    able |= {f"torch, {precision}": replace(wanted, precision=precision) for precision in precisions}
    for name in PACKAGES:
        for precision in (*precisions, "int8"):
            asked = replace(wanted, engine=name, precision=precision, calibration=calibration)
            if not (refusal(name, asked) or missing(name)):
                able[f"{name}, {precision}"] = asked
    return Subject(model.eval(), (config.h, config.w), able), f"{config.backbone}, {config.h}x{config.w}"


def single_images(subject: Subject, engines: dict[str, Engine], title: str) -> Iterator[str]:
    """Opens the engines for the current number of threads, and measures each on one image.

    Memory is the largest of this process while the engine opens and runs once, beyond that before.
    """
    image = torch.randint(0, 256, (1, *subject.size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    yield f"{title}\n{'':<30}{'open, s':>9}{'first, ms':>11}{'median':>9}{'99 %':>9}{'memory, MiB':>13}"
    for name in subject.wanted:
        before, start = restart_peak(), time.perf_counter()
        engines[name] = subject.opened(name)
        opened = time.perf_counter() - start
        times: list[float] = []
        while len(times) <= RUNS and sum(times) < 1e3 * SECONDS:
            start = time.perf_counter()
            engines[name](image).cpu()
            times.append(1e3 * (time.perf_counter() - start))
            if len(times) == 1:
                memory = "-" if before is None else f"{(resident('VmHWM') - before) / 2**20:.0f}"
        first, *rest = times
        middle, slow = np.percentile(rest, [50, 99])
        yield f"{name:<30}{opened:>9.1f}{first:>11.1f}{middle:>9.1f}{slow:>9.1f}{memory:>13}"


def bare_sessions(subject: Subject, folder: Path) -> dict[str, Run]:
    """The installed packages on normalised images (N, 3, H, W) float32, as their documentation calls them."""
    found: dict[str, Run] = {}
    if names := [name for name in PACKAGES if not missing(name)]:
        path = folder / "bare.onnx"
        export_onnx(path, copy.deepcopy(subject.model), subject.size, "normalised", True, {})
    if "onnx" in names:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found["bare ONNX Runtime, fp32"] = lambda images: session.run(None, {"images": images})[0]
    if "openvino" in names:
        import openvino

        compiled = openvino.Core().compile_model(str(path), "CPU")
        found["bare OpenVINO, fp32"] = lambda images: compiled(images)[0]
    return found


def variants(
    engines: Mapping[str, Engine], bare: Mapping[str, Run], size: tuple[int, int], count: int, times: int
) -> dict[str, Callable]:
    """Each engine on `times` batches of `count` random images, one after the other; returns the last descriptors."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8)
    normalised = as_input(pixels.numpy(), "normalised")
    images = pixels.permute(0, 3, 1, 2)

    def through(engine: Engine, batch: Tensor) -> Callable[[], Tensor]:
        return lambda: list(describe(engine, [batch] * times))[-1].flatten(1).cpu()

    def called(run: Run) -> Callable[[], np.ndarray]:
        return lambda: [run(normalised) for _ in range(times)][-1]

    found: dict[str, Callable] = {
        name: through(engine, images.contiguous() if name == PLAIN else images)  # plain: as a usual loader gives them
        for name, engine in engines.items()
    }
    return found | {name: called(run) for name, run in bare.items()}


def stages(engines: Mapping[str, Engine], size: tuple[int, int], images: list[Image], batch_size: int) -> Iterator[str]:
    """Seconds of each stage alone, and of all together as in `extract`, where they overlap."""
    yield f"{f'stages, {len(images)} images':<30}" + "".join(f"{name:>9}" for name in (*STAGES, "together"))
    clock = [time.perf_counter()]
    opened = [open_image(read(image.path)).convert("RGB") for image in images]
    clock.append(time.perf_counter())
    pixels = torch.from_numpy(np.stack([resized(image, *size) for image in opened])).permute(0, 3, 1, 2)
    clock.append(time.perf_counter())
    folder, batches = Path(images[0].path).parent, pixels.split(batch_size)
    store, order = ImageStore(images, *size), in_order(len(images), batch_size)
    for name, engine in engines.items():
        alone, now = [*np.diff(clock)], time.perf_counter()
        found = [rows.flatten(1).cpu().numpy() for rows in describe(engine, batches)]
        alone.append(time.perf_counter() - now)
        writer, now = FeaturesWriter(folder / f"{name}.h5", Record(), {"names": store.paths}), time.perf_counter()
        for i, rows in enumerate(found):
            writer.write(rows, i * batch_size, {})
        writer.finish()
        alone.append(time.perf_counter() - now)
        whole, now = folder / f"{name}, whole.h5", time.perf_counter()
        extract_file(whole, engine, lambda start: store.batches(order), {"gallery": images}, Record())
        shares = "".join(f"{part / sum(alone):>9.0%}" for part in alone)
        yield f"{name:<30}{shares}{(time.perf_counter() - now) / sum(alone):>9.0%}"
