"""Is it the same person? True and false accepts over all kept pairs, a threshold, and how sure all numbers are."""

from typing import Any, NamedTuple

import numpy as np

from reid.errors import InputError
from reid.evaluation.distances import BLOCK_BYTES, blocks, on_host
from reid.evaluation.ranking import Pairs

FPRS = (1e-4, 1e-3, 1e-2)
TAIL = 1.5e-2  # share of the wrong pairs, the nearest, that is kept: amply the largest rate of false accepts
SAMPLE = 1 << 20  # wrong pairs for the distribution beyond the tail
DRAWS, CONFIDENCE, SEED = 2000, 0.95, 1501
BINS = 2048  # of the tail, for the threshold's interval


class Pairwise(NamedTuple):
    """Distances over all kept pairs, ascending: of the same person, and of wrong pairs those below `bound` (`tail`,
    with their query rows) and a regular sample; `n_within` wrong pairs are <= bound."""

    same: np.ndarray
    tail: np.ndarray
    tail_query: np.ndarray
    sample: np.ndarray
    bound: float
    n_within: int
    n_different: np.ndarray  # (Q,) wrong pairs of each query


def open_set(
    query: np.ndarray,
    gallery: np.ndarray,
    query_pids: np.ndarray,
    pairs: Pairs,
    fpr: float = 1e-3,
    metric: str = "euclidean",
    device=None,
    limit: int = BLOCK_BYTES,
) -> dict[str, Any]:
    """ROC, rates of true accepts (TPR) at rates of false accepts (FPR), distributions, and the threshold for `fpr`.

    A pair is accepted when its distance is <= the threshold: the largest float32 at which at most FPR x wrong pairs
    are accepted, so ties never flatter. Exact up to FPR 1e-2; beyond, the ROC is made from a sample of wrong pairs.
    Raises InputError for an fpr outside 0 .. 1e-2 or when there is no wrong pair.
    """
    if not 0 < fpr <= max(FPRS):
        raise InputError(f"--fpr {fpr}: give a rate of false accepts above 0, at most {max(FPRS)}")
    different = len(gallery) - np.bincount(pairs.query, minlength=len(query))
    total = int(different.sum())
    if not total:
        raise InputError("all query and gallery images show one person, so there is no wrong pair to be accepted")
    share = TAIL
    while True:
        bound = estimated_bound(query, gallery, metric, device, share) if total > SAMPLE and share < 1 else np.inf
        found = gather(query, gallery, pairs, different, bound, metric, device, limit)
        if found.n_within > max(FPRS) * total or bound == np.inf:
            break
        share *= 4  # the evenly spread images had fewer near wrong pairs than all have

    def threshold(rate: float) -> float:
        allowed = int(rate * total)
        beyond = found.tail[allowed] if allowed < len(found.tail) else np.float32(found.bound)
        return float(np.nextafter(beyond, np.float32(-np.inf)))

    def accepted(limit: float) -> float:
        return float(np.searchsorted(found.same, np.float32(limit), "right") / len(found.same))

    thresholds = {rate: threshold(rate) for rate in sorted({*FPRS, fpr})}
    exact = np.geomspace(1 / max(total, 100), 1e-2, 41)
    sampled = np.linspace(1e-2, 1, 61)[1:]
    roc = [[rate, accepted(threshold(rate))] for rate in exact.tolist()]
    roc += [[rate, accepted(limit)] for rate, limit in zip(sampled.tolist(), np.quantile(found.sample, sampled))]
    edges = np.linspace(min(0, found.same[0], found.sample[0]), max(found.same[-1], found.sample[-1]), 101)
    return {
        "fpr": fpr,
        "threshold": thresholds[fpr],
        "threshold_interval": threshold_interval(found, query_pids, fpr),
        "n_same": len(found.same),
        "n_different": total,
        "tpr": {f"{rate:g}": accepted(limit) for rate, limit in thresholds.items()},
        "thresholds": {f"{rate:g}": limit for rate, limit in thresholds.items()},
        "roc": roc,
        "distances": {
            "edges": edges.tolist(),
            "same": (np.histogram(found.same, edges)[0] / len(found.same)).tolist(),
            "different": (np.histogram(found.sample, edges)[0] / len(found.sample)).tolist(),
        },
    }


def estimated_bound(query, gallery, metric: str, device, share: float) -> float:
    """A distance below which about `share` of the pairs lie, from evenly spread queries and gallery images."""
    q, g = query[:: -(-len(query) // 256)], gallery[:: -(-len(gallery) // 4096)]
    block = next(blocks(q, g, metric, device))
    return float(np.quantile(on_host(block.keys) + on_host(block.offsets), share))


def gather(query, gallery, pairs: Pairs, different: np.ndarray, bound: float, metric, device, limit) -> Pairwise:
    same, tail, tail_query, sample, n_within = [], [], [], [], 0
    stride = max(1, len(query) * len(gallery) // SAMPLE)
    stride += stride % 2 == 0  # so that it does not keep to some columns
    for block in blocks(query, gallery, metric, device, limit):
        distance = on_host(block.keys)
        distance += on_host(block.offsets)
        at = slice(*np.searchsorted(pairs.query, [block.start, block.start + len(distance)]))
        rows, columns, junk = pairs.query[at] - block.start, pairs.gallery[at], pairs.junk[at]
        same.append(distance[rows[~junk], columns[~junk]])
        distance[rows, columns] = np.inf
        for i, row in enumerate(distance, block.start):
            near = row[row < bound]
            tail.append(near)
            tail_query.append(np.full(len(near), i, np.int32))
            n_within += np.count_nonzero(row <= bound)
        spread = distance.ravel()[::stride]
        sample.append(spread[np.isfinite(spread)])
    del block, distance  # what follows needs the memory
    distances, rows = np.concatenate(tail), np.concatenate(tail_query)
    tail.clear(), tail_query.clear()
    order = np.argsort(distances, kind="stable")
    sorted_same, sorted_sample = np.sort(np.concatenate(same)), np.sort(np.concatenate(sample))
    return Pairwise(sorted_same, distances[order], rows[order], sorted_sample, bound, n_within, different)


def resampled(groups: int) -> np.ndarray:
    """(DRAWS, groups) how often each group is drawn, with replacement; the same numbers each time."""
    return np.random.default_rng(SEED).multinomial(groups, np.full(groups, 1 / groups), DRAWS).astype(np.float64)


def interval(values: np.ndarray) -> list[float]:
    return np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()


def mean_interval(values: np.ndarray, pids: np.ndarray) -> list[float]:
    """Interval of the mean of `values` (NaN left out) by bootstrap over identities: the queries of a person are
    alike, so drawing single queries would show too narrow an interval."""
    known = ~np.isnan(values)
    _, group = np.unique(pids[known], return_inverse=True)
    weights = resampled(group.max() + 1)
    return interval((weights @ np.bincount(group, values[known])) / (weights @ np.bincount(group)))


def threshold_interval(found: Pairwise, query_pids: np.ndarray, fpr: float) -> list[float]:
    """Interval of the threshold by bootstrap over query identities; the tail is cut into BINS of equal counts."""
    pids, group = np.unique(query_pids, return_inverse=True)
    used = found.tail[: int(4 * fpr * found.n_different.sum()) + BINS]
    edges = (
        np.append(used[np.linspace(0, len(used) - 1, BINS).astype(int)], found.bound) if len(used) else [found.bound]
    )
    edges = np.unique(np.float32(edges))
    cells = group[found.tail_query[: len(used)]] * len(edges) + np.searchsorted(edges, used)
    counts = np.bincount(cells, minlength=len(pids) * len(edges)).reshape(len(pids), len(edges))
    weights = resampled(len(pids))
    allowed = fpr * (weights @ np.bincount(group, found.n_different))
    within = np.cumsum(weights @ counts, axis=1)
    beyond = edges[np.minimum((within <= allowed[:, None]).sum(1), len(edges) - 1)]
    return interval(np.nextafter(beyond, np.float32(-np.inf)))
