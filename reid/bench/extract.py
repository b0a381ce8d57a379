"""Extraction of descriptors with mirror images: precisions, and the Extractor's prepared model."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from reid.bench.measure import check_close, table
from reid.bench.train import timed
from reid.config import Config
from reid.device import find_hardware, set_up
from reid.inference.describe import describe
from reid.inference.prepare import prepare
from reid.models import build_model


def run(a) -> Iterator[str]:
    hardware = find_hardware(a.device, tuple(a.gpus))
    set_up(hardware, "fp32")  # each variant selects its own precision
    device = hardware.device
    torch.manual_seed(0)
    model = build_model(Config(backbone=a.backbone), 0).eval()
    shape = (a.batch_size, a.h, a.w, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).permute(0, 3, 1, 2)

    def form(model: nn.Module, precision: str, pixels: Tensor = pixels) -> Callable:
        model = model.to(device)

        def describe_batch() -> Tensor:
            return torch.cat(list(describe(model, [pixels], device, precision=precision))).cpu()

        return describe_batch

    def prepared(precision: str, compiled: bool = False) -> nn.Module:
        return prepare(copy.deepcopy(model), (a.h, a.w), precision, compiled)

    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    forms = {
        "fp32, channels first": form(copy.deepcopy(model), "fp32", pixels.contiguous()),
        "fp32, channels last": form(last, "fp32"),
        "bf16, channels last": form(last, "bf16"),
    }
    for precision in ("fp32", "bf16"):
        forms[f"Extractor, {precision}"] = form(prepared(precision), precision)
        if a.compile:
            forms[f"Extractor, {precision}, compiled"] = form(prepared(precision, True), precision)
    rows = timed(forms, a.repeat, device)
    check_close(rows, [name for name in forms if "fp32" in name], 1e-4)
    title = f"extraction, {a.backbone}, {a.h}x{a.w}, batch {a.batch_size}, {device.type}"
    yield table(title, rows, next(iter(forms)))
    for name, row in rows.items():
        yield f"{name}: {a.batch_size / row.seconds:.1f} images/s"
