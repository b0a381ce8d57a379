"""Where the work runs: the device of this process, its precision, and what the allocator is told."""

import ctypes
import logging

import torch

from reid.errors import InputError
from reid.processes import world

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_memory() -> None:
    """Lets glibc keep what is freed, for this process: it hands each large tensor back to the kernel otherwise, which
    clears its pages anew for the next batch, and a small network's forward pass takes up to twice as long."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    if mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25):  # the most that older glibcs take
        mallopt(M_TRIM_THRESHOLD, -1)  # alone it would make it slower


def pick_device(gpus: tuple[int, ...]) -> torch.device:
    """The CUDA device asked for; the CPU, with one warning line, where there is no CUDA."""
    if not torch.cuda.is_available():
        if world().first:
            logger.warning(f"no CUDA device here, so --gpus {' '.join(map(str, gpus))} runs on the CPU")
        keep_memory()
        return torch.device("cpu")
    count, here = torch.cuda.device_count(), world()
    if here.size > 1 and len(gpus) < here.size:  # torchrun without --gpus: a device each
        gpus = tuple(range(count))
    number = gpus[here.local] if here.local < len(gpus) else count
    if number >= count:
        raise InputError(
            f"--gpus {' '.join(map(str, gpus))}: this machine has devices 0 to {count - 1}, and each of "
            "its processes needs one"
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    torch.backends.cudnn.deterministic = True  # the same seed gives the same bits
    return device


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Context in which the backbone runs in `precision` (auto: bf16 on CUDA, fp32 on the CPU)."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
