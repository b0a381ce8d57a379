"""Extraction of descriptors: precisions and the Extractor beside model.eval(), images/s with both flips."""

import torch

from reid.bench.measure import table
from reid.bench.train import step_flags, timed
from reid.config import Config
from reid.device import find_hardware, set_up
from reid.inference.describe import describe
from reid.inference.prepare import prepare
from reid.models import build_model


def add_arguments(parser) -> None:
    step_flags(parser, batch_size=64)
    parser.add_argument("--compile", action="store_true", help="also torch.compile of the backbone")


def main(arguments) -> int:
    a, hardware = arguments, find_hardware(arguments.device, tuple(arguments.gpus))
    set_up(hardware, "fp32")  # each form selects its own precision
    device = hardware.device
    model = build_model(Config(backbone=a.backbone), 0).to(device).eval()
    last = build_model(Config(backbone=a.backbone), 0).to(device, memory_format=torch.channels_last).eval()
    pixels = torch.randint(0, 256, (a.batch_size, a.h, a.w, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    flat = pixels.contiguous()

    def ready(precision: str, compile: bool = False):
        model = prepare(build_model(Config(backbone=a.backbone), 0), (a.h, a.w), precision, compile).to(device)
        return lambda: list(describe(model, [pixels], device, precision=precision))

    forms = {
        "fp32, channels first": lambda: list(describe(model, [flat], device, precision="fp32")),
        "fp32, channels last": lambda: list(describe(last, [pixels], device, precision="fp32")),
        "bf16, channels last": lambda: list(describe(last, [pixels], device, precision="bf16")),
        "Extractor, fp32": ready("fp32"),
        "Extractor, bf16": ready("bf16"),
    }
    if a.compile:
        forms |= {f"Extractor, {p}, compiled": ready(p, True) for p in ("fp32", "bf16")}
    rows = timed(forms, a.repeat, device)
    print(table(f"extraction, {a.backbone}, {a.h}x{a.w}, batch {a.batch_size}, {device.type}", rows, next(iter(forms))))
    for name, row in rows.items():
        print(f"{name}: {a.batch_size / row.seconds:.1f} images/s")
    return 0
