"""Protocols that a Ranking does not cover: CUHK03's single gallery shot, and pairs of cameras."""

import numpy as np

from reid.evaluation.ranking import CMC_RANKS, Pairs, Ranking, rank_rows


class SingleGalleryShot:
    """The exact expectation of the CMC of CUHK03's first protocol.

    The gallery of a query has one random image of each identity, from other cameras only; usually the mean of ten
    such draws is reported. With the query's own match at distance d, another identity ranks before it with
    probability p, the share of its images within d. The number of identities before it is a sum of independent draws
    (a Poisson-binomial variable), whose distribution is computed identity by identity.
    """

    def __init__(self, query_pids, gallery_pids, query_camids=None, gallery_camids=None):
        self.order = np.argsort(gallery_pids, kind="stable")
        self.pids, self.first = np.unique(gallery_pids[self.order], return_index=True)
        self.query_pids, self.query_camids = query_pids, query_camids
        self.gallery_camids = None if gallery_camids is None else gallery_camids[self.order]
        self.rows: list[np.ndarray] = []

    def add(self, distance: np.ndarray, start: int) -> None:
        """Adds rows start .. start + n of the distances, (n, G)."""
        ranks = min(CMC_RANKS, len(self.order))
        for q, row in enumerate(distance, start):
            own = np.searchsorted(self.pids, self.query_pids[q])
            if own == len(self.pids) or self.pids[own] != self.query_pids[q]:
                continue
            row = row[self.order]
            allowed = np.ones(len(row), bool)
            if self.query_camids is not None:
                allowed = self.gallery_camids != self.query_camids[q]
            end = self.first[own + 1] if own + 1 < len(self.first) else len(row)
            ours = np.arange(self.first[own], end)
            ours = ours[allowed[ours]]
            if not len(ours):
                continue
            within = (row <= row[ours, None]) & allowed
            shots = np.add.reduceat(allowed, self.first, dtype=int)
            p = np.add.reduceat(within, self.first, axis=1, dtype=int) / np.maximum(shots, 1)
            p[:, own] = 0
            before = np.zeros((len(ours), ranks))  # probability of k identities before the match, k < ranks
            before[:, 0] = 1
            for column in p.T[p.any(0)]:
                moved = before * column[:, None]
                before -= moved
                before[:, 1:] += moved[:, :-1]
            self.rows.append(before.mean(0).cumsum())

    def cmc(self) -> np.ndarray:
        """(K,) mean over the queries with a match."""
        return np.mean(self.rows, axis=0)


class CameraPairs:
    """mAP and Rank-1 for each query camera against each gallery camera alone."""

    def __init__(self, pairs: Pairs, query_camids: np.ndarray, gallery_camids: np.ndarray):
        self.query_camids = query_camids
        self.columns = {int(c): np.flatnonzero(gallery_camids == c) for c in np.unique(gallery_camids)}
        self.pairs: dict[int, Pairs] = {}
        self.parts: dict[int, list] = {camid: [] for camid in self.columns}
        for camid, columns in self.columns.items():
            inside = gallery_camids[pairs.gallery] == camid
            gallery = np.searchsorted(columns, pairs.gallery[inside])
            self.pairs[camid] = Pairs(pairs.query[inside], gallery, pairs.junk[inside])

    def add(self, distance, start: int) -> None:
        for camid, columns in self.columns.items():
            self.parts[camid].append(rank_rows(distance[:, columns], self.pairs[camid], start))

    def table(self) -> list[dict]:
        """A row for each pair of cameras with a match: query_camid, gallery_camid, queries, map, rank1."""
        rows = []
        for camid, parts in self.parts.items():
            ranking = Ranking.of(parts, len(self.query_camids), len(self.columns[camid]))
            for query_camid in np.unique(self.query_camids[ranking.valid]):
                chosen = ranking.valid & (self.query_camids == query_camid)
                row = {
                    "query_camid": int(query_camid),
                    "gallery_camid": camid,
                    "queries": int(chosen.sum()),
                    "map": float(ranking.ap[chosen].mean()),
                    "rank1": float((ranking.first_match[chosen] == 1).mean()),
                }
                rows.append(row)
        return rows
