"""Distributed training and extraction, one process per device. Without other processes the functions have no effect.

PyTorch's default backends connect them: NCCL for CUDA, XCCL for XPU, gloo for the CPU.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from reid.errors import InputError
from reid.signals import handled


class World(NamedTuple):
    """The position of this process among all processes."""

    rank: int = 0
    size: int = 1
    local: int = 0  # rank on this machine

    @property
    def first(self) -> bool:
        """Whether this process writes files and messages; only rank 0 does."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Rows of a global batch of n for this process. Raises InputError if n cannot be split evenly."""
        if n % self.size:
            raise InputError(
                f"a batch of {n} images cannot be split over {self.size} processes; "
                f"use --batch_size {-(-n // self.size) * self.size}"
            )
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)


def world() -> World:
    """The World that torchrun or `launch` has put into the environment variables."""
    if "RANK" not in os.environ:
        return World()
    return World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextmanager
def connected(device: torch.device) -> Iterator[World]:
    """Connects the processes; yields the World of this process."""
    here = world()
    if here.size > 1:
        dist.init_process_group(dist.get_default_backend_for_device(device))
    try:
        yield here
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def together() -> bool:
    """Whether several processes are connected."""
    return dist.is_initialized() and dist.get_world_size() > 1


def wait() -> None:
    """Waits until every process has called it."""
    if together():
        dist.barrier()


def gather(x: Tensor) -> Tensor:
    """(n, ...) of every process, with the same n -> (n x size, ...) in the order of ranks.

    Gradients flow only into the part of this process.
    """
    if not together():
        return x
    parts = [torch.empty_like(x, requires_grad=False) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = x
    return torch.cat(parts)


def gather_rows(x: Tensor) -> Tensor:
    """(n, ...) of every process, each with its own n -> all rows in the order of ranks, without gradients."""
    if not together():
        return x
    counts = gather(torch.tensor([len(x)], device=x.device)).tolist()
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    return torch.cat([p[:n] for p, n in zip(gather(padded).chunk(len(counts)), counts)])


def from_first(value: int, device: torch.device) -> int:
    """The value of rank 0, in every process."""
    if not together():
        return value
    return int(gather(torch.tensor([value], device=device))[0])


def part_of(rows: Sequence[int], here: World) -> Sequence[int]:
    """The contiguous part of a batch that belongs to this process, for any batch length; it may be empty."""
    return rows[here.rank * len(rows) // here.size : (here.rank + 1) * len(rows) // here.size]


def average(x: Tensor) -> Tensor:
    """Mean over the processes."""
    if together():
        dist.all_reduce(x)
        x = x / dist.get_world_size()
    return x


class SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes. The backward pass sums the gradient over the processes, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return SumOverProcesses.reduced(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return SumOverProcesses.reduced(gradient)

    @staticmethod
    def reduced(x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x


def launch(work: Callable[[Any], int], argument: Any, count: int) -> int:
    """Calls work(argument) in `count` processes on this machine; returns the first exit code that is not 0.

    Stop signals are forwarded. If one process fails, the others are terminated.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.spawn(run_rank, (work, argument, count, port), count, join=False)

    def pass_on(number: int, frame: FrameType | None) -> None:
        # SIGTERM even after Ctrl-C: the terminal has already sent SIGINT to the children, and a second one would end
        # them at once. On Windows, console signals reach all processes, and there are no other signals.
        if sys.platform != "win32":
            for process in context.processes:
                process.terminate()

    with handled(pass_on):
        try:
            while not context.join(timeout=1):
                pass
        except mp.ProcessExitedException as e:
            return e.exit_code if e.exit_code > 0 else 1
    return 0


def run_rank(rank: int, work: Callable[[Any], int], argument: Any, count: int, port: int) -> None:
    """The main function of one process of `launch`."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(address, RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    if code := work(argument):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # do not wait for the others; the message is already printed
