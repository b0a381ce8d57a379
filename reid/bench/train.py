"""The training step, compared with the bare backbone and the plain implementation; and its parts."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.bench.data import augmented_batch
from reid.bench.measure import Measured, check_close, side_by_side, table
from reid.bench.plain import PlainHeads, PlainRRID, plain_loss
from reid.config import Config
from reid.data.transforms import normalise
from reid.device import Hardware, autocast, find_hardware, set_up
from reid.errors import InputError
from reid.losses import batch_hard_triplet, identity_loss, objective
from reid.models.rrid import RRID
from reid.training.step import TrainStep

CLASSES, MARGIN = 751, 1.2
PLAIN, PLAIN_HEADS, BATCHED_HEADS = "plain, fp32", "plain heads", "batched heads"
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Work:
    """The data and the model that all variants share; each variant works on a copy of the model."""

    backbone: str
    pixels: Tensor  # (N, 3, H, W) uint8
    images: Tensor  # normalised
    labels: Tensor  # (N,), 4 images per identity
    model: RRID

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def copy_of_model(self) -> RRID:
        return copy.deepcopy(self.model).to(memory_format=torch.channels_last)


def run(a) -> Iterator[str]:
    if a.batch_size < 5:
        raise InputError(f"--batch_size {a.batch_size}: two identities need at least 5 images")
    if a.jobs > 1:
        from reid.bench.jobs import jobs  # its processes import this module

        yield from jobs(a)
        return
    hardware = find_hardware(a.device, tuple(a.gpus))
    set_up(hardware, "fp32")  # each variant selects its own precision
    work = make_work(a, hardware.device)
    rows = timed(step_forms(work, a.no_plain, a.compile), a.repeat, work.device)
    if not a.no_plain:
        check_close(rows, [PLAIN, "RRID, fp32"], 1e-3)
    batch = f"batch {a.batch_size}"
    title = f"training step, {a.backbone}, {a.h}x{a.w}, {batch}, {work.device.type}"
    yield table(title, rows, next(iter(rows)))
    for precision in PRECISIONS:
        step = rows[f"RRID, {precision}"].seconds
        bare = rows[f"bare {a.backbone}, {precision}"].seconds
        line = f"RRID {precision}: {a.batch_size / step:.1f} images/s, {step / bare:.2f} of the bare backbone's time"
        yield line if a.no_plain else f"{line}, {step / rows[PLAIN].seconds:.2f} of the plain one's"

    size = (a.batch_size, work.model.base.channels, a.h // 16, a.w // 16)
    heads = timed(head_forms(work, torch.randn(size, device=work.device)), a.repeat, work.device)
    check_close(heads, [PLAIN_HEADS, BATCHED_HEADS], 1e-3)
    yield table(f"heads, classifiers and losses alone, {batch}", heads, PLAIN_HEADS)
    ratio = heads[BATCHED_HEADS].seconds / heads[PLAIN_HEADS].seconds
    yield f"batched heads: {ratio:.2f} of the time of the plain ones"
    yield table("parts of a bf16 step", timed(stages(work), a.repeat, work.device))


def make_work(a, device: torch.device) -> Work:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (a.batch_size, a.h, a.w, 3), dtype=np.uint8)
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)  # channels last in memory
    torch.manual_seed(0)
    model = RRID(CLASSES, backbone=a.backbone).to(device)
    labels = torch.arange(a.batch_size, device=device) // 4
    return Work(a.backbone, batch, normalise(batch), labels, model)


def timed(forms: dict[str, Callable], repeat: int, device: torch.device) -> dict[str, Measured]:
    """side_by_side after one run of each variant; waits for the device."""

    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    for form in forms.values():
        form()
    wait()
    return side_by_side(forms, repeat, wait)


def step_forms(work: Work, no_plain: bool, compiled: bool) -> dict[str, Callable]:
    forms = {} if no_plain else {PLAIN: plain_step(work)}
    for precision in PRECISIONS:
        forms[f"RRID, {precision}"] = rrid_step(work, precision)
        forms[f"bare {work.backbone}, {precision}"] = bare_step(work, precision)
        if compiled:
            forms[f"RRID, {precision}, compiled"] = rrid_step(work, precision, compiled=True)
    return forms


def rrid_step(work: Work, precision: str, compiled: bool = False) -> Callable[[], float]:
    config = Config(precision=precision, compile=compiled, margin=MARGIN)
    step = TrainStep(work.copy_of_model(), config, work.device)
    return lambda: step(work.images, work.labels, (0.0, 0.0))["loss"].item()


def plain_step(work: Work) -> Callable[[], float]:
    model = PlainRRID(work.model, work.backbone, CLASSES).to(work.device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.0, 0.9, weight_decay=5e-4, foreach=False)
    images = work.images.contiguous()

    def step() -> float:
        optimizer.zero_grad()
        features, logits = model(images)
        loss = plain_loss(features, logits, work.labels, MARGIN)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def bare_step(work: Work, precision: str) -> Callable:
    """The backbone with average pooling, one classifier, one cross entropy."""
    base = work.copy_of_model().base.train()
    classifier = nn.Linear(base.channels, CLASSES).to(work.device)
    parameters = [*base.parameters(), *classifier.parameters()]
    fused = Hardware(work.device).fused
    optimizer = torch.optim.SGD(parameters, 0.0, 0.9, weight_decay=5e-4, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision, work.device):
            features = base(work.images).mean((2, 3), dtype=torch.float32)
        F.cross_entropy(classifier(features), work.labels).backward()
        optimizer.step()

    return step


def loss_of(features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    triplet = batch_hard_triplet(features, labels, MARGIN).sum()
    return objective(triplet, identity_loss(logits, labels).sum())


def head_forms(work: Work, maps: Tensor) -> dict[str, Callable[[], float]]:
    """Forward and backward pass from the map (N, C, h, w) on; each returns its loss."""
    model = work.copy_of_model().train()
    plain = PlainHeads(maps.shape[1], CLASSES, model.stripes).to(work.device).train()
    plain.copy_weights(model)
    first = maps.clone().requires_grad_()
    last = maps.contiguous(memory_format=torch.channels_last).requires_grad_()

    def plain_heads() -> float:
        features, logits = plain(first)
        loss = plain_loss(features, logits, work.labels, MARGIN)
        loss.backward()
        return loss.item()

    def batched_heads() -> float:
        q, a, b = model.heads(last)
        loss = loss_of(q, model.classify(q, a, b), work.labels)
        loss.backward()
        return loss.item()

    return {PLAIN_HEADS: plain_heads, BATCHED_HEADS: batched_heads}


def stages(work: Work) -> dict[str, Callable]:
    """The parts of a step, each alone, with its backward pass where it has one."""
    model, rng = work.copy_of_model(), np.random.default_rng(0)
    step = TrainStep(model, Config(precision="bf16"), work.device)
    images = augmented_batch(work.pixels, rng)

    def backbone() -> Tensor:
        with autocast("bf16", work.device):
            x = model.base(images)
        x.backward(torch.ones_like(x))
        return x

    maps = backbone().detach().requires_grad_()

    def heads() -> tuple[Tensor, Tensor]:
        q, a, b = model.heads(maps)
        logits = model.classify(q, a, b)
        torch.autograd.backward([q, logits], [torch.ones_like(q), torch.ones_like(logits)])
        return q, logits

    features, logits = (x.detach().requires_grad_() for x in heads())
    return {
        "data (augment, normalise)": lambda: augmented_batch(work.pixels, rng),
        "backbone": backbone,
        "heads and classifiers": heads,
        "losses": lambda: loss_of(features, logits, work.labels).backward(),
        "optimiser": step.optimizer.step,
    }
