"""Features -> distances, in blocks of query rows, float32, on the CPU or a GPU."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reid.errors import InputError

METRICS = ("euclidean", "cosine")
BLOCK_BYTES = 1 << 28
COLUMNS = 1 << 16  # gallery rows turned to float32 at once
UNIT_TOLERANCE = 1e-3  # float16 features of unit length are this close to it


class Block(NamedTuple):
    """Rows start .. start + n of the distances: distance = keys + offsets.

    keys (n, G) rank a row exactly as the distances do, without the ties that adding the row's constant would
    make in float32; the next block overwrites them. offsets (n, 1).
    """

    start: int
    keys: Tensor
    offsets: Tensor


def blocks(
    query: np.ndarray, gallery: np.ndarray, metric: str = "euclidean", device="cpu", limit: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Distances of query (Q, F) to gallery (G, F), float16 or float32, in blocks of at most `limit` bytes.

    euclidean: squared, |q|^2 + |g|^2 - 2 q.g; cosine: 1 - q.g / (|q| |g|). Products are float32 always: bfloat16
    has some 1,500 distinct values a row and moves mAP by 2e-3. Raises InputError for an unknown metric.
    """
    if metric not in METRICS:
        raise InputError(f"--metric {metric} is unknown; choose from {', '.join(METRICS)}")
    q_all, g_all = (torch.from_numpy(x).to(device) for x in (query, gallery))
    q_square, g_square = squared_lengths(q_all), squared_lengths(g_all)
    unit = all(bool(((s - 1).abs() < 2 * UNIT_TOLERANCE).all()) for s in (q_square, g_square))
    if metric == "cosine" and not unit and not bool((q_square > 0).all() & (g_square > 0).all()):
        raise InputError("a feature has length zero, so it has no cosine; use --metric euclidean")
    rows = max(1, limit // (4 * len(gallery)))
    keys = torch.empty(min(rows, len(query)), len(gallery), device=device)
    for start in range(0, len(query), rows):
        q = q_all[start : start + rows].float()
        offsets = torch.ones(len(q), 1, device=device)
        if metric == "euclidean":
            q = -2 * q
            offsets = 2 * offsets if unit else q_square[start : start + rows, None]
        else:
            q = -q if unit else -q / q_square[start : start + rows, None].sqrt()
        block = keys[: len(q)]
        for c in range(0, len(gallery), COLUMNS):
            g = g_all[c : c + COLUMNS].float()
            products(q, g, block[:, c : c + COLUMNS])
        if not unit:
            block.add_(g_square) if metric == "euclidean" else block.div_(g_square.sqrt())
        yield Block(start, block, offsets)


def squared_lengths(features: Tensor) -> Tensor:
    return torch.cat([part.float().square().sum(1) for part in features.split(COLUMNS)])


def products(q: Tensor, g: Tensor, out: Tensor) -> None:
    """out = q g', in full float32 whatever the program has allowed for its training."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(q.device.type, enabled=False):
            torch.mm(q, g.T, out=out)
    finally:
        torch.set_float32_matmul_precision(allowed)
