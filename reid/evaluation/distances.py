"""Features -> distances, in blocks of query rows, float32, on the CPU or a GPU."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from reid.config import check_known
from reid.errors import InputError

METRICS = ("euclidean", "cosine")
BLOCK_BYTES = 1 << 29
CHUNK = 1 << 24  # values converted to float32 at once
UNIT_TOLERANCE = 2e-3  # squared lengths of float16 features of unit length are this close to 1


class Block(NamedTuple):
    """Rows start .. start + n of the distances: distance = keys + offsets.

    keys (n, G) rank a row as the distances do, but without the ties that adding the row's constant would cause in
    float32; the next block overwrites them. offsets (n, 1). Both are tensors if a device was given, else NumPy
    arrays: on the CPU, the threads of torch and of NumPy would slow each other down threefold.
    """

    start: int
    keys: Any
    offsets: Any


def blocks(
    query: np.ndarray, gallery: np.ndarray, metric: str = "euclidean", device=None, limit: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Distances of query (Q, F) to gallery (G, F), float16 or float32, in blocks of at most `limit` bytes.

    euclidean: squared, |q|^2 + |g|^2 - 2 q.g; cosine: 1 - q.g / (|q| |g|). Products are always float32: bfloat16
    has about 1,500 distinct values per row and changes mAP by 2e-3. Raises InputError for an unknown metric.
    """
    check_known("metric", metric, METRICS)
    q_all, g_all = (query, gallery) if device is None else (torch.from_numpy(x).to(device) for x in (query, gallery))
    q_square, g_square = squared_lengths(q_all), squared_lengths(g_all)
    unit = all(bool((abs(s - 1) < UNIT_TOLERANCE).all()) for s in (q_square, g_square))
    if metric == "cosine" and not bool((q_square > 0).all() and (g_square > 0).all()):
        raise InputError("a feature has length zero, so it has no cosine; use --metric euclidean")
    rows = max(1, limit // (4 * len(gallery)))
    shape = (min(rows, len(query)), len(gallery))
    keys = np.empty(shape, np.float32) if device is None else torch.empty(shape, device=device)
    for start in range(0, len(query), rows):
        q, length = as_float32(q_all[start : start + rows]), q_square[start : start + rows, None]
        if metric == "euclidean":
            q, offsets = -2 * q, length * 0 + 2 if unit else length
        else:
            q, offsets = -q if unit else -q / length**0.5, length * 0 + 1
        block = keys[: len(q)]
        for columns in chunks(g_all):
            products(q, as_float32(g_all[columns]), block[:, columns])
        if not unit and metric == "euclidean":
            block += g_square
        elif not unit:
            block /= g_square**0.5
        yield Block(start, block, offsets)


def chunks(features) -> list[slice]:
    """Rows of (M, F) in pieces of about CHUNK numbers."""
    rows = max(1, CHUNK // features.shape[1])
    return [slice(i, i + rows) for i in range(0, len(features), rows)]


def as_float32(x):
    return x.astype(np.float32, copy=False) if isinstance(x, np.ndarray) else x.float()


def on_host(x) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.cpu().numpy()


def row_maxima(x) -> np.ndarray:
    """(n,) maximum of each row of (n, G)."""
    return x.max(1) if isinstance(x, np.ndarray) else x.amax(1).cpu().numpy()


def squared_lengths(features):
    """(M,) float32 squared length of each row of (M, F)."""
    parts = [(as_float32(features[rows]) ** 2).sum(1) for rows in chunks(features)]
    return np.concatenate(parts) if isinstance(features, np.ndarray) else torch.cat(parts)


def of_unit_length(features: np.ndarray) -> bool:
    """Whether all rows have length 1, up to the rounding of float16."""
    return bool((abs(squared_lengths(features) - 1) < UNIT_TOLERANCE).all())


def products(q, g, out) -> None:
    """out = q g', in full float32 independent of the precision that the process has set."""
    if isinstance(q, np.ndarray):
        np.matmul(q, g.T, out=out)
        return
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(q.device.type, enabled=False):
            torch.mm(q, g.T, out=out)
    finally:
        torch.set_float32_matmul_precision(allowed)


def nearest(keys, k: int) -> np.ndarray:
    """(n, k) columns of the k smallest entries of each row, in order."""
    if not isinstance(keys, np.ndarray):
        return keys.topk(k, largest=False).indices.cpu().numpy()
    columns = np.empty((len(keys), k), np.int64)
    width = keys.shape[1] // 8
    for row, out in zip(keys, columns):
        bound = np.inf
        if width > k:  # k minima of eight entries each, so at least k entries, are at most this
            bound = np.partition(row[: 8 * width].reshape(8, width).min(0), k - 1)[k - 1]
        near = np.flatnonzero(row <= bound)
        out[:] = near[np.argsort(row[near], kind="stable")[:k]]
    return columns
