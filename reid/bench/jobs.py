"""Trainings at the same time on the CPU cores of one machine, compared with one training alone."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

import torch

from reid.bench.train import make_work, rrid_step
from reid.device import keep_memory

TURNS = 3  # after one that warms up; the median counts

mine: dict[str, Any] = {}  # the training step of this process, and the barrier before steps at the same time


def jobs(a) -> Iterator[str]:
    """Images per second of a.jobs processes together and of one process, by turns, each a.repeat steps per turn."""
    cores = os.cpu_count() or 1
    share = max(1, cores // a.jobs)
    forms = {
        f"one, threads: {cores}": (1, cores),
        f"{a.jobs} together, threads of each: {share}": (a.jobs, share),
        f"{a.jobs} together, threads of each: {cores}": (a.jobs, cores),
    }
    rates: dict[str, list[float]] = {name: [] for name in forms}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(a.jobs, context, prepare, (a, context.Barrier(a.jobs))) as pool:
        for turn in range(TURNS + 1):
            for name, (count, threads) in forms.items():
                spans = list(pool.map(steps, [threads] * count, [count > 1] * count, [a.repeat] * count))
                seconds = max(stop for _, stop in spans) - min(start for start, _ in spans)
                if turn:
                    rates[name].append(count * a.repeat * a.batch_size / seconds)
    alone, *_ = found = {name: median(values) for name, values in rates.items()}
    size = f"{a.backbone}, {a.h}x{a.w}, batch {a.batch_size}, fp32"
    yield f"{f'training, {size}':<56}{'images/s':>9}{'of one':>9}"
    for name, rate in found.items():
        yield f"{name:<56}{rate:>9.1f}{rate / found[alone]:>8.2f}x"


def prepare(a, barrier) -> None:
    """Of each process, once."""
    keep_memory()
    mine.update(step=rrid_step(make_work(a, torch.device("cpu")), "fp32"), barrier=barrier)


def steps(threads: int, together: bool, count: int) -> tuple[float, float]:
    """(start, end) of `count` training steps, in seconds of a clock that all processes share."""
    torch.set_num_threads(threads)
    if together:
        mine["barrier"].wait()
    start = time.time()
    for _ in range(count):
        mine["step"]()
    return start, time.time()
