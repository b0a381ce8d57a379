"""Open-set scores: true and false accepts over all pairs, a recommended threshold, and intervals."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from reid.errors import InputError
from reid.evaluation.distances import Block, blocks, on_host
from reid.evaluation.ranking import Pairs

FPRS = (1e-4, 1e-3, 1e-2)
TAIL = 1.5e-2  # share of the wrong pairs, the nearest, whose distances are kept; more than max(FPRS)
SAMPLE = 1 << 20  # wrong pairs that represent the distribution beyond the tail
DRAWS, CONFIDENCE, SEED = 2000, 0.95, 1501
BINS = 2048  # of the tail, for the threshold's interval

Distances = Callable[[np.ndarray, np.ndarray], Iterator[Block]]  # query, gallery -> blocks


class Pairwise(NamedTuple):
    """Distances over all kept pairs, ascending.

    same: pairs of one person. tail, tail_query: wrong pairs below `bound`, and their query rows. sample: wrong pairs at
    regular positions. n_within: number of wrong pairs up to `bound`. n_different: (Q,) number of wrong pairs per query.
    """

    same: np.ndarray
    tail: np.ndarray
    tail_query: np.ndarray
    sample: np.ndarray
    bound: float
    n_within: int
    n_different: np.ndarray

    @property
    def total(self) -> int:
        return int(self.n_different.sum())

    def threshold(self, rate: float) -> float:
        """The largest float32 at which at most this rate of the wrong pairs is accepted."""
        allowed = int(rate * self.total)
        beyond = self.tail[allowed] if allowed < len(self.tail) else np.float32(self.bound)
        return float(np.nextafter(beyond, np.float32(-np.inf)))

    def accepted(self, threshold: float) -> float:
        """Rate of true accepts."""
        return float(np.searchsorted(self.same, np.float32(threshold), "right") / len(self.same))

    def roc(self) -> list[list[float]]:
        """[rate of false accepts, rate of true accepts]: exact up to 1e-2, from the sample beyond."""
        exact = np.geomspace(1 / max(self.total, 100), 1e-2, 41)
        sampled = np.linspace(1e-2, 1, 61)[1:]
        points = [[rate, self.accepted(self.threshold(rate))] for rate in exact.tolist()]
        thresholds = np.quantile(self.sample, sampled)
        return points + [[rate, self.accepted(t)] for rate, t in zip(sampled.tolist(), thresholds)]

    def histograms(self) -> dict[str, list[float]]:
        """Shares of both kinds of pairs in 100 bins."""
        low = min(0, self.same[0], self.sample[0])
        edges = np.linspace(low, max(self.same[-1], self.sample[-1]), 101)
        return {
            "edges": edges.tolist(),
            "same": (np.histogram(self.same, edges)[0] / len(self.same)).tolist(),
            "different": (np.histogram(self.sample, edges)[0] / len(self.sample)).tolist(),
        }


def open_set(
    query: np.ndarray,
    gallery: np.ndarray,
    query_pids: np.ndarray,
    pairs: Pairs,
    fpr: float = 1e-3,
    distances: Distances = blocks,
) -> dict[str, Any]:
    """ROC, rates of true accepts (TPR) at rates of false accepts (FPR), distributions, and the threshold for `fpr`.

    A pair is accepted when its distance is <= the threshold: the largest float32 at which at most FPR x wrong pairs
    are accepted, ties counted. Exact up to FPR 1e-2; beyond, the ROC is computed from a sample of wrong pairs.
    Raises InputError for an fpr outside 0 .. 1e-2, or without a wrong pair.
    """
    if not 0 < fpr <= max(FPRS):
        raise InputError(f"--fpr {fpr}: give a rate of false accepts above 0, at most {max(FPRS)}")
    different = len(gallery) - np.bincount(pairs.query, minlength=len(query))
    if not different.any():
        raise InputError("all query and gallery images show one person, so there is no wrong pair")
    found = all_pairs(query, gallery, pairs, different, distances)
    thresholds = {rate: found.threshold(rate) for rate in sorted({*FPRS, fpr})}
    return {
        "fpr": fpr,
        "threshold": thresholds[fpr],
        "threshold_interval": threshold_interval(found, query_pids, fpr),
        "n_same": len(found.same),
        "n_different": found.total,
        "tpr": {f"{rate:g}": found.accepted(threshold) for rate, threshold in thresholds.items()},
        "thresholds": {f"{rate:g}": threshold for rate, threshold in thresholds.items()},
        "roc": found.roc(),
        "distances": found.histograms(),
    }


def all_pairs(query, gallery, pairs: Pairs, different: np.ndarray, distances: Distances) -> Pairwise:
    """The Pairwise of all kept pairs. Its tail has enough wrong pairs for max(FPRS)."""
    total, share = int(different.sum()), TAIL
    while total > SAMPLE and share < 1:
        bound = estimated_bound(query, gallery, distances, share)
        found = gather(query, gallery, pairs, different, bound, distances)
        if found.n_within > max(FPRS) * total:
            return found
        share *= 4  # the bound, estimated from a sample, was too small
    return gather(query, gallery, pairs, different, np.inf, distances)


def estimated_bound(query, gallery, distances: Distances, share: float) -> float:
    """A distance below which about `share` of the pairs lie, from evenly spaced queries and gallery images."""
    q, g = query[:: -(-len(query) // 256)], gallery[:: -(-len(gallery) // 4096)]
    values = [on_host(block.keys) + on_host(block.offsets) for block in distances(q, g)]
    return float(np.quantile(np.concatenate(values), share))


def gather(query, gallery, pairs: Pairs, different: np.ndarray, bound: float, distances: Distances) -> Pairwise:
    """The Pairwise of all kept pairs, with the wrong pairs below `bound` as tail."""
    same, tail, tail_query, sample = [], [], [], []
    n_within = 0
    stride = max(1, len(query) * len(gallery) // SAMPLE)
    stride += stride % 2 == 0  # an even stride would visit only some columns
    for block in distances(query, gallery):
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
            n_within += int(np.count_nonzero(row <= bound))
        spread = distance.ravel()[::stride]
        sample.append(spread[np.isfinite(spread)])
    del block, distance  # the sorting below needs the memory
    near, rows = np.concatenate(tail), np.concatenate(tail_query)
    tail.clear()
    tail_query.clear()
    order = np.argsort(near, kind="stable")
    sorted_same, sorted_sample = np.sort(np.concatenate(same)), np.sort(np.concatenate(sample))
    return Pairwise(sorted_same, near[order], rows[order], sorted_sample, bound, n_within, different)


def resampled(groups: int) -> np.ndarray:
    """(DRAWS, groups) how often each group is drawn, with replacement; the same numbers at each call."""
    return np.random.default_rng(SEED).multinomial(groups, np.full(groups, 1 / groups), DRAWS).astype(np.float64)


def interval(values: np.ndarray) -> list[float]:
    """[low, high]: the central CONFIDENCE of the values."""
    return np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()


def mean_interval(values: np.ndarray, pids: np.ndarray) -> list[float]:
    """Interval of the mean of `values` (NaN left out) by bootstrap over identities.

    The queries of one person are alike: drawing single queries would give too narrow an interval.
    """
    known = ~np.isnan(values)
    _, group = np.unique(pids[known], return_inverse=True)
    weights = resampled(group.max() + 1)
    return interval((weights @ np.bincount(group, values[known])) / (weights @ np.bincount(group)))


def threshold_interval(found: Pairwise, query_pids: np.ndarray, fpr: float) -> list[float]:
    """Interval of the threshold by bootstrap over query identities; the tail is divided into BINS of equal counts."""
    pids, group = np.unique(query_pids, return_inverse=True)
    used = found.tail[: int(4 * fpr * found.n_different.sum()) + BINS]
    places = np.linspace(0, len(used) - 1, BINS if len(used) else 0).astype(int)
    edges = np.unique(np.append(used[places], found.bound).astype(np.float32))
    cells = group[found.tail_query[: len(used)]] * len(edges) + np.searchsorted(edges, used)
    counts = np.bincount(cells, minlength=len(pids) * len(edges)).reshape(len(pids), len(edges))
    weights = resampled(len(pids))
    allowed = fpr * (weights @ np.bincount(group, found.n_different))
    within = np.cumsum(weights @ counts, axis=1)
    beyond = edges[np.minimum((within <= allowed[:, None]).sum(1), len(edges) - 1)]
    return interval(np.nextafter(beyond, np.float32(-np.inf)))
