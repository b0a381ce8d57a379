"""The hardware of this process: its device, what that device can do, and the resolved precision.

A command calls `find_hardware` once. Only `set_up` changes the process-wide settings of PyTorch and the C library.
"""

import ctypes
import logging
import os
from dataclasses import dataclass

import psutil
import torch

from reid.config import DEVICES, PRECISIONS
from reid.errors import InputError
from reid.processes import world

logger = logging.getLogger(__name__)

BUSY = 80  # per cent of all cores
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


@dataclass(frozen=True)
class Hardware:
    """The device of this process and its capabilities."""

    device: torch.device

    @property
    def fused(self) -> bool:
        """Whether the fused optimisers leave the weights unchanged if `found_inf` is 1.

        MPS and XPU have fused kernels, but this behaviour was not tested there.
        """
        return self.device.type in ("cpu", "cuda")

    @property
    def pinned(self) -> bool:
        """Whether copies from pinned memory can overlap with computation (non_blocking)."""
        return self.device.type in ("cuda", "xpu")

    @property
    def native_bf16(self) -> bool:
        """Whether the device has bf16 instructions. Otherwise bf16 is emulated."""
        if self.device.type in ("cuda", "xpu"):
            module = torch.get_device_module(self.device)
            with module.device(self.device):
                return module.is_bf16_supported(including_emulation=False)
        if self.device.type == "mps":
            return torch.backends.mps.is_macos_or_newer(14, 0)
        return torch.backends.cpu.get_cpu_capability() not in ("NO AVX", "AVX2")

    @property
    def name(self) -> str:
        """For example 'cuda:0 (NVIDIA H100)' or 'cpu'."""
        if self.device.type not in ("cuda", "xpu"):
            return str(self.device)
        return f"{self.device} ({torch.get_device_module(self.device).get_device_name(self.device)})"


def find_hardware(device: str = "auto", gpus: tuple[int, ...] = (), warn: bool = True) -> Hardware:
    """The device of this process.

    device: a value of --device; auto selects the accelerator of this machine, or the CPU.
    gpus: ids of --gpus, one per process of this machine; without ids the first, or one per process of torchrun.
    warn: log a warning when an automatic choice falls back to the CPU. With `gpus` it is always logged.

    Raises InputError for a device or an id that does not exist.
    """
    here = world()
    kind = accelerator(device)
    if kind is None:
        if here.first and device != "cpu" and (warn or gpus):
            logger.warning("no CUDA, MPS or XPU device was found; running on the CPU")
        return Hardware(torch.device("cpu"))
    count = torch.accelerator.device_count()
    ids = gpus or range(count)
    if here.local >= len(ids):
        raise InputError(
            f"{here.local + 1} or more processes, but {len(ids)} devices; "
            "give --gpus one id per process, or start fewer processes"
        )
    if max(ids) >= count:
        raise InputError(f"--gpus {' '.join(map(str, ids))}: this machine has {kind} devices 0 to {count - 1}")
    if len(set(ids)) < len(ids):
        raise InputError(f"--gpus {' '.join(map(str, ids))} names a device twice; each process needs its own")
    return Hardware(torch.device(kind, ids[here.local]))


def accelerator(device: str) -> str | None:
    """The accelerator type that a value of --device means, None for the CPU. Raises InputError."""
    if device == "cpu":
        return None
    found = torch.accelerator.current_accelerator(check_available=True)
    kind = found.type if found is not None and found.type in DEVICES else None
    if device != "auto" and kind != device:
        there = f"{kind} or cpu" if kind else "cpu"
        raise InputError(f"--device {device}: PyTorch finds no such device here; use --device {there}, or auto")
    return kind


def process_count(device: str, gpus: tuple[int, ...]) -> int:
    """How many processes a command starts: one per id of --gpus; one on the CPU and under torchrun."""
    return max(1, len(gpus)) if world().size == 1 and accelerator(device) else 1


def resolve_precision(precision: str, device: torch.device) -> str:
    """'fp32', 'tf32', 'bf16' or 'int8': what `precision` means on this device.

    auto: bf16 on CUDA and XPU devices that compute it natively, fp32 elsewhere.
    tf32: fp32 on devices other than CUDA.
    Raises InputError for bf16 on a device that cannot compute it at all, and for int8 on a GPU.
    """
    hardware = Hardware(torch.device(device))
    kind = hardware.device.type
    if precision == "auto":
        return "bf16" if kind in ("cuda", "xpu") and hardware.native_bf16 else "fp32"
    if precision == "int8" and kind != "cpu":
        raise InputError("--precision int8 runs on the CPU; add --device cpu, or use --precision bf16")
    if precision == "tf32" and kind != "cuda":
        return "fp32"
    if precision == "bf16" and kind == "mps" and not hardware.native_bf16:
        raise InputError("--precision bf16 needs macOS 14 or newer on MPS; use --precision fp32")
    return precision


def set_up(hardware: Hardware, precision: str = "auto", threads: int = 0) -> str:
    """Changes process-wide settings at the start of a command; returns the resolved precision.

    Selects the device, keeps freed memory (CPU), makes cuDNN deterministic, sets the precision of float32 products,
    and logs device and precision.
    """
    device = hardware.device
    resolved = resolve_precision(precision, device)
    set_threads(threads, device)
    if device.type == "cpu":
        keep_memory()
    elif device.index is not None:
        torch.accelerator.set_device_index(device.index)
    torch.backends.cudnn.deterministic = True  # the same seed gives the same bits
    torch.backends.cudnn.allow_tf32 = resolved == "tf32"
    torch.set_float32_matmul_precision("high" if resolved == "tf32" else "highest")
    if world().first:
        logger.info(f"device {hardware.name}, precision {resolved}")
        if precision == "tf32" != resolved:
            logger.warning("tf32 exists only on CUDA devices; running in fp32")
        if precision == "bf16" and not hardware.native_bf16:
            logger.warning("this device has no bf16 instructions; bf16 is emulated and may be slower than fp32")
    return resolved


def set_threads(threads: int, device: torch.device) -> None:
    """Sets the number of CPU threads; 0 leaves PyTorch's own, one per core or $OMP_NUM_THREADS.

    Warns on a busy machine if nobody chose a number: two processes with a thread per core each
    are many times slower than two with half of the cores each.
    """
    if threads:
        torch.set_num_threads(threads)
    elif device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ and world().size == 1:
        busy = psutil.cpu_percent(interval=0.1)
        if busy > BUSY:
            half = max(1, torch.get_num_threads() // 2)
            logger.warning(
                f"other processes use {busy:.0f} % of the CPU; threads that share cores slow each other down, "
                f"so give each process a part of them, as with --threads {half}"
            )


def keep_memory() -> None:
    """Makes glibc keep freed memory in this process.

    By default, glibc returns the memory of each large tensor to the kernel, and the kernel clears the pages again for
    the next batch. The forward pass of a small network then takes up to twice as long.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    # 2**25 is the largest value that older versions accept; the second option alone would be slower
    if mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25):
        mallopt(M_TRIM_THRESHOLD, -1)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Context in which the backbone runs in a resolved precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not resolved; expected one of {PRECISIONS}")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
