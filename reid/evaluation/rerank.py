"""Re-ranking without labels: k-reciprocal encoding, sparse and exact, and average query expansion."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import sparse

from reid.errors import InputError
from reid.evaluation.distances import (
    BLOCK_BYTES,
    Block,
    as_float32,
    blocks,
    nearest,
    on_host,
    row_maxima,
    squared_lengths,
)


class Reciprocal(NamedTuple):
    """k-reciprocal encoding: neighbours, neighbours of the expansion, weight of the original distance."""

    k1: int = 20
    k2: int = 6
    weight: float = 0.3


PUBLISHED = Reciprocal()  # Zhong et al.


def reciprocal_blocks(
    query: np.ndarray,
    gallery: np.ndarray,
    metric: str = "euclidean",
    device=None,
    limit: int = BLOCK_BYTES,
    settings: Reciprocal = PUBLISHED,
) -> Iterator[Block]:
    """Distances re-ranked by k-reciprocal encoding (Zhong et al. 2017, arXiv 1701.08398), as distances.blocks.

    (1 - weight) Jaccard distance of the neighbourhoods + weight x distance / the largest distance of its row. An
    encoding has a few hundred entries, so it is stored sparse, and rows are computed one by one. The result equals the
    dense computation. Memory grows with the number of images instead of its square.
    """
    k1, k2, weight = settings
    images = np.concatenate([query, gallery])
    if len(images) <= k1:
        raise InputError(f"--rerank needs {k1} neighbours, but there are only {len(images)} images")
    near, largest = neighbours(images, k1 + 1, metric, device, limit)
    encoding = expanded(encode(images, near, largest, metric, k1), near, k2)
    ours, theirs = encoding[: len(query)], encoding[len(query) :].tocsc()
    for block in blocks(query, gallery, metric, device, limit // 8):
        rows = slice(block.start, block.start + len(block.keys))
        keys = on_host(block.keys)
        keys += on_host(block.offsets)
        keys *= weight / largest[rows, None]
        for i, row in enumerate(keys, block.start):
            overlap = shared_weight(ours, theirs, i)
            row += (1 - weight) * (1 - overlap / (2 - overlap))
        yield Block(block.start, keys, np.zeros((len(keys), 1), np.float32))


def neighbours(images: np.ndarray, k: int, metric: str, device, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each image, itself included, in order (N, k), and its largest distance (N,)."""
    near, largest = [], []
    for block in blocks(images, images, metric, device, limit // 8):
        near.append(nearest(block.keys, k))
        largest.append(row_maxima(block.keys) + on_host(block.offsets)[:, 0])
    return np.concatenate(near), np.concatenate(largest)


def encode(images, near: np.ndarray, largest: np.ndarray, metric: str, k1: int) -> sparse.csr_array:
    """(N, N): row i has exp(-distance / largest), scaled to the sum 1, at i's reciprocal neighbours.

    The k1 / 2 reciprocal neighbours of a neighbour are added if more than 2/3 of them are neighbours of i.
    """
    reciprocal = mutual(near)
    half = mutual(near[:, : int(np.around(k1 / 2)) + 1])
    common = (reciprocal @ half.T).multiply(reciprocal).tocoo()  # (i, c): neighbours that i and c have in common
    joins = common.data > 2 / 3 * half.sum(1)[common.col]
    joined = sparse.csr_array((common.data[joins], (common.row[joins], common.col[joins])), common.shape)
    pattern = (reciprocal + joined @ half).tocsr()
    products = np.empty(pattern.nnz, np.float32)
    for i, image in enumerate(images):
        entries = slice(*pattern.indptr[i : i + 2])
        products[entries] = as_float32(images[pattern.indices[entries]]) @ as_float32(image)
    row, column = np.repeat(np.arange(len(images)), np.diff(pattern.indptr)), pattern.indices
    square = squared_lengths(images)
    if metric == "euclidean":
        distance = square[row] + square[column] - 2 * products
    else:
        distance = 1 - products / np.sqrt(square[row] * square[column])
    weights = np.exp(-distance / largest[row])
    weights /= np.bincount(row, weights)[row]
    return sparse.csr_array((weights.astype(np.float32), pattern.indices, pattern.indptr), pattern.shape)


def mutual(near: np.ndarray) -> sparse.csr_array:
    """(N, N): 1 where each image is in the other's list."""
    n, k = near.shape
    listed = sparse.csr_array((np.ones(n * k, np.float32), near.ravel(), np.arange(0, n * k + 1, k)), (n, n))
    return listed.multiply(listed.T).tocsr()


def expanded(encoding: sparse.csr_array, near: np.ndarray, k2: int) -> sparse.csr_array:
    """Each row replaced by the mean of the rows of its k2 nearest."""
    n = len(near)
    nearest = near[:, :k2].ravel()
    mean = sparse.csr_array((np.full(n * k2, 1 / k2, np.float32), nearest, np.arange(0, n * k2 + 1, k2)), (n, n))
    return (mean @ encoding).tocsr()


def shared_weight(ours: sparse.csr_array, theirs: sparse.csc_array, i: int) -> np.ndarray:
    """(G,) the sum over all entries of the smaller of row i of `ours` and each row of `theirs`."""
    entries = slice(*ours.indptr[i : i + 2])
    first = theirs.indptr[ours.indices[entries]]
    size = theirs.indptr[ours.indices[entries] + 1] - first
    at = np.repeat(first - (np.cumsum(size) - size), size) + np.arange(size.sum())
    smaller = np.minimum(np.repeat(ours.data[entries], size), theirs.data[at])
    return np.bincount(theirs.indices[at], smaller, theirs.shape[0])


def expand_queries(
    query: np.ndarray, gallery: np.ndarray, k: int, metric: str = "euclidean", device=None, limit: int = BLOCK_BYTES
) -> np.ndarray:
    """(Q, F) float32: each query becomes the mean of itself and its k nearest gallery features, at its original length.

    Average query expansion, Chum et al. 2007.
    """
    if not 0 < k <= len(gallery):
        raise InputError(f"--query_expansion {k}: give 1 to {len(gallery)}, the size of the gallery")
    mean = query.astype(np.float32)
    for block in blocks(query, gallery, metric, device, limit // 8):
        near = nearest(block.keys, k)
        for column in near.T:
            mean[block.start : block.start + len(near)] += gallery[column]
    length = np.linalg.norm(query.astype(np.float32), axis=1, keepdims=True)
    return mean * (length / np.linalg.norm(mean, axis=1, keepdims=True))
