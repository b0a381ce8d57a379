"""Distances -> ranks of every true match -> average precision, CMC, INP.

A measure needs, for each true match, only the number of entries of its row that are at least as near. All measures
follow from these counts, so galleries of any size are ranked in blocks of rows and the counts are joined. Of a row
only the entries within its farthest match are sorted, by value: this costs far less than an argsort.

Definitions: per query, *kept* entries are the gallery without junk (same pid and same camid); its *matches* are
the kept entries with its pid. Ties are counted as wrong, so no score depends on the gallery's order. Queries without
a match are left out of the means and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from reid.errors import InputError

CMC_RANKS = 50
COUNT_BYTES = 1 << 28  # compared at once on a torch device


@dataclass(frozen=True)
class Ranking:
    """For each of T matches, by query and then by distance: its query and gallery row, and two counts.

    right, wrong: how many matches (itself included) and how many wrong kept entries are as near or nearer.

    >>> r = rank(np.array([[0.1, 0.2, 0.3, 0.4]]), [7], [7, 3, 7, 5])
    >>> r.mean_ap, r.cmc.tolist(), r.mean_inp  # precisions 1/1 and 2/3; first match at 1, last of the two at 3
    (0.8333333333333333, [1.0, 1.0, 1.0, 1.0], 0.6666666666666666)
    """

    query: np.ndarray
    gallery: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    n_query: int
    n_gallery: int

    @classmethod
    def of(cls, blocks: Sequence[tuple[np.ndarray, ...]], n_query: int, n_gallery: int) -> "Ranking":
        """Joins the results of rank_rows for all blocks."""
        query, gallery, right, wrong = (np.concatenate(parts) for parts in zip(*blocks))
        return cls(query, gallery, right, wrong, n_query, n_gallery)

    @cached_property
    def matches(self) -> np.ndarray:
        """(Q,) number of matches of each query."""
        return np.bincount(self.query, minlength=self.n_query)

    @cached_property
    def valid(self) -> np.ndarray:
        """(Q,) whether the query has a match."""
        return self.matches > 0

    @property
    def n_valid(self) -> int:
        return int(self.valid.sum())

    @cached_property
    def place(self) -> np.ndarray:
        """(T,) 1 for the nearest match of its query, 2 for the next ..."""
        return np.arange(len(self.query)) - (np.cumsum(self.matches) - self.matches)[self.query] + 1

    def _mean_of_matches(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.bincount(self.query, values, self.n_query) / self.matches

    @cached_property
    def ap(self) -> np.ndarray:
        """(Q,) step-wise average precision, as scikit-learn's. NaN without a match.

        The mean over the matches, at distance d, of matches within d / kept entries within d.
        """
        return self._mean_of_matches(self.right / (self.right + self.wrong))

    @cached_property
    def ap_trapezoid(self) -> np.ndarray:
        """(Q,) the mean over the matches of the precision before and after each: Market-1501's and layumi's.

        Among ties the wrong entries come first.
        """
        after = self.place / (self.place + self.wrong)
        before = (self.place - 1) / np.maximum(self.place - 1 + self.wrong, 1)
        before[self.place - 1 + self.wrong == 0] = 1
        return self._mean_of_matches((before + after) / 2)

    @cached_property
    def first_match(self) -> np.ndarray:
        """(Q,) float: 1 + wrong kept entries as near as the first match; NaN without a match."""
        rank = np.full(self.n_query, np.nan)
        first = self.place == 1
        rank[self.query[first]] = self.wrong[first] + 1
        return rank

    @cached_property
    def inp(self) -> np.ndarray:
        """(Q,) matches / rank of the last match (kept entries within its distance); NaN without a match."""
        inp = np.full(self.n_query, np.nan)
        last = self.place == self.matches[self.query]
        inp[self.query[last]] = (self.right / (self.right + self.wrong))[last]
        return inp

    @property
    def mean_ap(self) -> float:
        return float(np.nanmean(self.ap))

    @property
    def mean_inp(self) -> float:
        return float(np.nanmean(self.inp))

    @cached_property
    def cmc(self) -> np.ndarray:
        """(K,) share of the valid queries whose first match has rank <= k + 1; K = min(50, gallery)."""
        return self._cmc(self.first_match[self.valid], np.ones(self.n_valid))

    @cached_property
    def cmc_allshots(self) -> np.ndarray:
        """(K,) Open-ReID's: each match counts 1 / matches at its rank minus the earlier matches."""
        return self._cmc(self.wrong + 1, 1 / self.matches[self.query])

    def _cmc(self, ranks: np.ndarray, weights: np.ndarray) -> np.ndarray:
        size = min(CMC_RANKS, self.n_gallery)
        counts = np.bincount(np.minimum(ranks, size + 1).astype(int) - 1, weights, size + 1)[:size]
        return np.cumsum(counts) / self.n_valid


def rank(distance, query_pids, gallery_pids, query_camids=None, gallery_camids=None) -> Ranking:
    """Ranks of all matches. distance (Q, G), smaller is nearer: a NumPy array or a torch tensor on any device.

    pids and camids are integers; camids None for a protocol without cameras, where nothing is junk. Raises
    InputError for shapes that disagree, NaN, an empty side, or no query with a match.
    """
    query_pids, gallery_pids, query_camids, gallery_camids = check_labels(
        query_pids, gallery_pids, query_camids, gallery_camids
    )
    if not isinstance(distance, torch.Tensor):
        distance = np.asarray(distance)
    if tuple(distance.shape) != (len(query_pids), len(gallery_pids)):
        raise InputError(
            f"distances have shape {tuple(distance.shape)}, but there are {len(query_pids)} query and "
            f"{len(gallery_pids)} gallery pids; expected (queries, gallery)"
        )
    pairs = same_person(query_pids, gallery_pids, query_camids, gallery_camids)
    return join([rank_rows(distance, pairs)], len(query_pids), len(gallery_pids))


def check_labels(query_pids, gallery_pids, query_camids=None, gallery_camids=None) -> list:
    """The four as int64 arrays (camids stay None together). Raises InputError."""
    if (query_camids is None) != (gallery_camids is None):
        raise InputError("camids of one side only; give both, or neither for a protocol without cameras")
    sides: list[Any] = []
    names = ("query pids", "gallery pids", "query camids", "gallery camids")
    for name, values in zip(names, (query_pids, gallery_pids, query_camids, gallery_camids)):
        array = None if values is None else np.asarray(values)
        if array is not None:
            whole = array.dtype.kind in "iu" or (array.dtype.kind == "f" and (np.abs(array) < 2**53).all())
            if array.ndim != 1 or not whole or (array != np.floor(array)).any():
                raise InputError(f"{name} have shape {array.shape} and type {array.dtype}; expected one integer each")
            if not array.size:
                raise InputError(f"there are no {name}: the set is empty; a test needs query and gallery images")
            array = array.astype(np.int64)
        sides.append(array)
    for side, pids, camids in zip(("query", "gallery"), sides, sides[2:]):
        if camids is not None and len(camids) != len(pids):
            raise InputError(f"{len(pids)} {side} pids but {len(camids)} {side} camids; expected one of each per row")
    return sides


@dataclass(frozen=True)
class Pairs:
    """All (query, gallery) pairs with the same pid, by query; junk: the camera is also the same."""

    query: np.ndarray
    gallery: np.ndarray
    junk: np.ndarray


def same_person(query_pids, gallery_pids, query_camids=None, gallery_camids=None) -> Pairs:
    """The Pairs of labels (Q,) and (G,). Without camids nothing is junk."""
    order = np.argsort(gallery_pids, kind="stable")
    first = np.searchsorted(gallery_pids, query_pids, "left", sorter=order)
    size = np.searchsorted(gallery_pids, query_pids, "right", sorter=order) - first
    query = np.repeat(np.arange(len(query_pids)), size)
    within = np.arange(len(query)) - np.repeat(np.cumsum(size) - size, size)
    gallery = order[np.repeat(first, size) + within]
    if query_camids is None:
        return Pairs(query, gallery, np.zeros(len(query), bool))
    return Pairs(query, gallery, query_camids[query] == gallery_camids[gallery])


def rank_rows(distance, pairs: Pairs, start: int = 0) -> tuple[np.ndarray, ...]:
    """The matches of a block of queries: distance (n, G) holds rows start .. start + n.

    Returns query, gallery, right, wrong as in Ranking, for `join`. Raises InputError for NaN."""
    torch_device = isinstance(distance, torch.Tensor)
    if not torch_device and distance.dtype not in (np.float32, np.float64):
        distance = distance.astype(np.float32 if distance.dtype == np.float16 else np.float64)
    block = slice(*np.searchsorted(pairs.query, [start, start + len(distance)]))
    q, g, junk = pairs.query[block] - start, pairs.gallery[block], pairs.junk[block]
    if torch_device:
        on_device = (torch.as_tensor(q, device=distance.device), torch.as_tensor(g, device=distance.device))
        d = distance[on_device].cpu().numpy()
    else:
        d = distance[q, g]
    order = np.lexsort((d, q))
    q, g, junk, d = q[order], g[order], junk[order], d[order]
    # Entries within d end where the run of equal distances ends.
    run_ends = np.flatnonzero(np.append((q[1:] != q[:-1]) | (d[1:] != d[:-1]), len(q) > 0))
    end = np.repeat(run_ends, np.diff(run_ends, prepend=-1))
    first = np.searchsorted(q, q)
    junk_before = np.concatenate([[0], np.cumsum(junk)])
    junk_within = junk_before[end + 1] - junk_before[first]
    right = end + 1 - first - junk_within
    kept = np.flatnonzero(~junk)
    q, g, right, junk_within = q[kept], g[kept], right[kept], junk_within[kept]
    within = (count_on_device if torch_device else count_within)(distance, q, d[kept])
    return q + start, g, right, within - junk_within - right


def join(blocks: Sequence[tuple[np.ndarray, ...]], n_query: int, n_gallery: int) -> Ranking:
    """The Ranking of all blocks. Raises InputError if no query has a match."""
    ranking = Ranking.of(blocks, n_query, n_gallery)
    if not len(ranking.query):
        raise InputError(
            f"none of the {n_query} queries has a match among the {n_gallery} gallery images: no same pid with "
            "another camera. Check that pids and camids of both sides come from the same numbering"
        )
    return ranking


def count_within(distance: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(T,) how many entries of distance[rows[t]] are <= values[t]; both ascending, values within a row."""
    counts = np.zeros(len(rows), np.int64)
    bounds = np.searchsorted(rows, np.arange(len(distance) + 1)).tolist()
    for i, row in enumerate(distance):
        if np.isnan(row.max()):
            raise InputError(f"distances of query row {i} contain NaN; expected numbers")
        own = values[bounds[i] : bounds[i + 1]]
        if len(own):
            inside = np.sort(row[row <= own[-1]])
            counts[bounds[i] : bounds[i + 1]] = inside.searchsorted(own, "right")
    return counts


def count_on_device(distance: torch.Tensor, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """count_within on the tensor's device."""
    if bool(distance.isnan().any()):
        raise InputError("distances contain NaN; expected numbers")
    chunk = max(1, COUNT_BYTES // (distance.element_size() * distance.shape[1]))
    rows_on = torch.as_tensor(rows, device=distance.device)
    values_on = torch.as_tensor(values, device=distance.device)[:, None]
    counts = [(distance[rows_on[i : i + chunk]] <= values_on[i : i + chunk]).sum(1) for i in range(0, len(rows), chunk)]
    return torch.cat(counts).cpu().numpy() if counts else np.empty(0, np.int64)
