"""Several processes that work as one: NCCL between GPUs, gloo between CPUs; alone, all of it does nothing."""

import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from reid.errors import InputError


class World(NamedTuple):
    """This process among all."""

    rank: int = 0
    size: int = 1
    local: int = 0  # number on this machine

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and lines."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This process's part of a global batch of n. Raises InputError when n cannot be split evenly."""
        if n % self.size:
            raise InputError(
                f"a batch of {n} images cannot be split over {self.size} processes; "
                f"use --batch_size {-(-n // self.size) * self.size}"
            )
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)


def world() -> World:
    """What torchrun, or `launch`, says in the environment."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    return World(*(int(os.environ[n]) for n in names)) if "RANK" in os.environ else World()


@contextmanager
def connected(device: torch.device):
    """The processes are connected inside; yields this one's World."""
    here = world()
    if here.size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield here
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def together() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def wait() -> None:
    """Until every process is here."""
    if together():
        dist.barrier()


def gather(x: Tensor) -> Tensor:
    """(n, ...) of every process, all of equal n -> (n x size, ...) by rank; gradients flow into the own part only."""
    if not together():
        return x
    parts = [torch.empty_like(x, requires_grad=False) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = x
    return torch.cat(parts)


def gather_rows(x: Tensor) -> Tensor:
    """(n, ...) of every process, n its own -> all rows by rank, without gradients."""
    if not together():
        return x
    counts = gather(torch.tensor([len(x)], device=x.device)).tolist()
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    return torch.cat([p[:n] for p, n in zip(gather(padded).chunk(len(counts)), counts)])


def from_first(value: int, device: torch.device) -> int:
    """The first process's value, on all."""
    if not together():
        return value
    return int(gather(torch.tensor([value], device=device))[0])


def part_of(rows: Sequence[int], here: World) -> Sequence[int]:
    """This process's contiguous part of a batch of any length; maybe empty."""
    return rows[here.rank * len(rows) // here.size : (here.rank + 1) * len(rows) // here.size]


def average(x: Tensor) -> Tensor:
    """The mean over processes."""
    if together():
        dist.all_reduce(x)
        x = x / dist.get_world_size()
    return x


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is summed the same way."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return SumOverProcesses.reduced(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return SumOverProcesses.reduced(gradient)

    @staticmethod
    def reduced(x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x


def launch(work: Callable[[Any], int], argument: Any, count: int) -> int:
    """work(argument) in `count` processes on this machine; returns the first exit code that is not 0.

    Signals are passed on. When one process fails, the others are ended.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.spawn(run_rank, (work, argument, count, port), count, join=False)

    def pass_on(number: int, frame) -> None:
        for process in context.processes:
            if process.is_alive():
                process.terminate() if number == signal.SIGTERM else os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not context.join(timeout=1):
            pass
    except mp.ProcessExitedException as e:
        return e.exit_code if e.exit_code > 0 else 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def run_rank(rank: int, work: Callable[[Any], int], argument: Any, count: int, port: int) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(address, RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    if code := work(argument):
        os._exit(code)  # its message is out; the others must not wait for it
