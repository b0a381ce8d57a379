"""Re-ranking: the sparse and the dense implementation, on the same random features."""

from collections.abc import Iterator

import numpy as np

from reid.bench.measure import check_close, random_features, side_by_side, table
from reid.evaluation.rerank import reciprocal_blocks


def run(a) -> Iterator[str]:
    features = random_features(a.queries, a.gallery, a.identities, 6, a.width)
    sides = (features.query.features, features.gallery.features)
    forms = {} if a.alone else {"dense": lambda: dense(*sides)}
    forms["sparse"] = lambda: sparse(*sides)
    rows = side_by_side(forms, a.repeat)
    title = f"{a.queries} x {a.gallery} x {a.width}"
    if not a.alone:
        title += f", largest difference {check_close(rows, forms, 1e-5):.1e}"
    yield table(title, rows, "dense")


def sparse(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(Q, G) distances of our implementation."""
    return np.concatenate([block.keys.copy() for block in reciprocal_blocks(query, gallery)])


def dense(query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, weight: float = 0.3) -> np.ndarray:
    """(Q, G) k-reciprocal re-ranked squared Euclidean distances, computed with dense NumPy arrays.

    Several N x N matrices and a loop over the N images. Zhong et al. 2017 (arXiv 1701.08398).
    """
    images = np.concatenate([query, gallery]).astype(np.float32)
    square = np.square(images).sum(1)
    distance = square[:, None] + square - 2 * images @ images.T
    distance /= distance.max(1, keepdims=True)
    order = np.argsort(distance, axis=1)

    def mutual(i: int, k: int) -> np.ndarray:
        forward = order[i, : k + 1]
        return forward[(order[forward, : k + 1] == i).any(1)]

    encoding = np.zeros_like(distance)
    for i in range(len(images)):
        own = mutual(i, k1)
        members = own
        for candidate in own:
            theirs = mutual(candidate, int(np.around(k1 / 2)))
            if len(np.intersect1d(theirs, own)) > 2 / 3 * len(theirs):
                members = np.append(members, theirs)
        members = np.unique(members)
        weights = np.exp(-distance[i, members])
        encoding[i, members] = weights / weights.sum()
    encoding = np.stack([encoding[order[i, :k2]].mean(0) for i in range(len(images))])
    rows_with = [np.flatnonzero(column) for column in encoding.T]
    final = distance[: len(query), len(query) :] * weight
    for i in range(len(query)):
        overlap = np.zeros(len(images), np.float32)
        for j in np.flatnonzero(encoding[i]):
            rows = rows_with[j]
            overlap[rows] += np.minimum(encoding[i, j], encoding[rows, j])
        final[i] += (1 - weight) * (1 - overlap / (2 - overlap))[len(query) :]
    return final
