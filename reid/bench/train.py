"""The training step: beside the bare backbone's and the plain form's, and where its time goes."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.bench.measure import side_by_side, table
from reid.bench.plain import PlainHeads, PlainRRID, plain_loss
from reid.config import Config
from reid.data.transforms import augment, draw_augmentation, normalise
from reid.device import DEVICES, Hardware, autocast, find_hardware, set_up
from reid.losses import batch_hard_triplet, identity_loss, objective
from reid.models import build_model
from reid.models.backbone import build_backbone
from reid.training.step import TrainStep
from reid.variants import BACKBONES

CLASSES = 751


def add_arguments(parser) -> None:
    step_flags(parser, batch_size=64)
    parser.add_argument("--compile", action="store_true", help="also torch.compile of the backbone")
    parser.add_argument("--no_plain", action="store_true", help="leave the plain form out")


def step_flags(parser, **defaults: int) -> None:
    for name, default in {"h": 384, "w": 128, "repeat": 5, **defaults}.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--backbone", choices=BACKBONES, default="resnet50", help="default resnet50")
    parser.add_argument("--gpus", type=int, nargs=1, default=[], help="GPU id (default: the first GPU, or the CPU)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="default auto: a GPU if there is one")


def main(arguments) -> int:
    a, hardware = arguments, find_hardware(arguments.device, tuple(arguments.gpus))
    set_up(hardware, "fp32")  # each form selects its own precision
    device = hardware.device
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (a.batch_size, a.h, a.w, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
    pixels = pixels.to(device)
    images, labels = normalise(pixels), torch.arange(a.batch_size, device=device) // 4

    forms = {} if a.no_plain else {"plain form, fp32": plain_step(a.backbone, images, labels)}
    for precision in ("fp32", "bf16"):
        forms[f"RRID, {precision}"] = rrid_step(a, device, images, labels, precision)
        forms[f"bare {a.backbone}, {precision}"] = bare_step(a, device, images, labels, precision)
    if a.compile:
        forms["RRID, bf16, compiled"] = rrid_step(a, device, images, labels, "bf16", compiled=True)
    rows = timed(forms, a.repeat, device)
    title = f"training step, {a.backbone}, {a.h}x{a.w}, batch {a.batch_size}, {device.type}"
    print(table(title, rows, next(iter(forms))))
    for precision in ("fp32", "bf16"):
        step, bare = rows[f"RRID, {precision}"].seconds, rows[f"bare {a.backbone}, {precision}"].seconds
        plain = "" if a.no_plain else f", {step / rows['plain form, fp32'].seconds:.2f} of the plain form"
        print(f"RRID {precision}: {a.batch_size / step:.1f} images/s, {step / bare:.2f} of the bare backbone{plain}")

    channels = build_backbone(a.backbone).channels
    maps = torch.randn(a.batch_size, channels, a.h // 16, a.w // 16, device=device)
    heads = timed(head_forms(a, maps, labels, channels), a.repeat, device)
    print(table(f"heads, classifiers and losses alone, batch {a.batch_size}", heads, "plain heads"))
    print(f"batched heads: {heads['batched heads'].seconds / heads['plain heads'].seconds:.2f} of the plain ones")
    print(table("where a bf16 step goes", timed(stages(a, device, pixels, labels), a.repeat, device), ""))
    return 0


def timed(forms: dict[str, Callable], repeat: int, device: torch.device):
    """side_by_side after a warm-up of each form, waiting for the device."""

    def waiting(form: Callable) -> Callable:
        def run() -> None:
            form()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)

        return run

    ready = {name: waiting(form) for name, form in forms.items()}
    for form in ready.values():
        form()
    return side_by_side(ready, repeat)


def rrid_step(a, device, images: Tensor, labels: Tensor, precision: str, compiled: bool = False) -> Callable:
    config = Config(backbone=a.backbone, h=a.h, w=a.w, precision=precision, compile=compiled)
    model = build_model(config, CLASSES).to(device, memory_format=torch.channels_last)
    step = TrainStep(model, config, device)
    x = images.contiguous(memory_format=torch.channels_last)
    return lambda: step(x, labels, (0.0, 0.0))


def plain_step(backbone: str, images: Tensor, labels: Tensor) -> Callable:
    model = PlainRRID(CLASSES, backbone).to(images.device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.0, 0.9, weight_decay=5e-4, foreach=False)
    x = images.contiguous()

    def step() -> None:
        optimizer.zero_grad()
        plain_loss(*model(x), labels, 1.2).backward()
        optimizer.step()

    return step


def bare_step(a, device, images: Tensor, labels: Tensor, precision: str) -> Callable:
    """The backbone with average pool, one classifier, one cross entropy."""
    base = build_backbone(a.backbone).to(device, memory_format=torch.channels_last).train()
    classifier = nn.Linear(base.channels, CLASSES).to(device)
    optimizer = torch.optim.SGD(
        [*base.parameters(), *classifier.parameters()], 0.0, 0.9, weight_decay=5e-4, fused=Hardware(device).fused
    )
    x = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision, device):
            features = base(x).mean((2, 3), dtype=torch.float32)
        F.cross_entropy(classifier(features), labels).backward()
        optimizer.step()

    return step


def head_forms(a, maps: Tensor, labels: Tensor, channels: int) -> dict[str, Callable]:
    """Forward and backward behind the map, to its gradient."""
    plain = PlainHeads(channels, CLASSES).to(maps.device).train()
    model = build_model(Config(backbone=a.backbone), CLASSES).to(maps.device).train()
    flat = maps.clone().requires_grad_()
    last = maps.contiguous(memory_format=torch.channels_last).requires_grad_()

    def batched() -> None:
        q, x, b = model.heads(last)
        triplet = batch_hard_triplet(q, labels, 1.2).sum()
        objective(triplet, identity_loss(model.classify(q, x, b), labels).sum()).backward()

    return {"plain heads": lambda: plain_loss(*plain(flat), labels, 1.2).backward(), "batched heads": batched}


def stages(a, device, pixels: Tensor, labels: Tensor) -> dict[str, Callable]:
    """The parts of a step, each alone, forward and backward where it has both."""
    config = Config(backbone=a.backbone, precision="bf16")
    model = build_model(config, CLASSES).to(device, memory_format=torch.channels_last)
    step = TrainStep(model, config, device)
    rng = np.random.default_rng(0)

    def data() -> Tensor:
        return normalise(augment(pixels, draw_augmentation(rng, a.batch_size, a.h, a.w, 0.5, "in_place")))

    images = data()
    with autocast("bf16", device):
        maps = model.base(images).detach().requires_grad_()

    def backbone() -> None:
        with autocast("bf16", device):
            model.base(images).backward(torch.ones_like(maps))

    def heads() -> None:
        q, x, b = model.heads(maps)
        torch.autograd.backward([q, model.classify(q, x, b)], [torch.ones_like(features), torch.ones_like(logits)])

    q, x, b = model.heads(maps)
    features, logits = q.detach().requires_grad_(), model.classify(q, x, b).detach().requires_grad_()

    def losses() -> None:
        triplet = batch_hard_triplet(features, labels, 1.2).sum()
        objective(triplet, identity_loss(logits, labels).sum()).backward()

    backbone(), heads()
    return {"data (augment, normalise)": data, "backbone": backbone, "heads and classifiers": heads, "losses": losses,
            "optimiser": step.optimizer.step}  # fmt: skip
