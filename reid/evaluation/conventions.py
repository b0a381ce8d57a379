"""Protocols that a Ranking does not cover: one gallery image per identity (CUHK03, VehicleID), and pairs of cameras."""

from typing import Any

import numpy as np

from reid.errors import InputError
from reid.evaluation.distances import on_host
from reid.evaluation.ranking import CMC_RANKS, Pairs, Ranking, rank_rows

QUADRATURE = 64  # nodes: exact for 127 identities before the match, and to 1e-9 for thousands


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
        self.gallery_camids: Any = None if gallery_camids is None else gallery_camids[self.order]
        self.ranks = min(CMC_RANKS, len(self.order))
        self.rows: list[np.ndarray] = []

    def add(self, distance, start: int) -> None:
        """Adds rows start .. start + n of the distances, (n, G)."""
        for q, row in enumerate(on_host(distance), start):
            own = np.searchsorted(self.pids, self.query_pids[q])
            if own == len(self.pids) or self.pids[own] != self.query_pids[q]:
                continue
            row = row[self.order]
            allowed = self.allowed(q, own)
            ours = np.arange(*self.images_of(own))
            ours = ours[allowed[ours]]
            if not len(ours):
                continue
            within = (row <= row[ours, None]) & allowed
            shots = np.add.reduceat(allowed, self.first, dtype=int)
            p = np.add.reduceat(within, self.first, axis=1, dtype=int) / np.maximum(shots, 1)
            p[:, own] = 0
            self.add_query(p[:, p.any(0)])

    def images_of(self, identity: int) -> tuple[int, int]:
        """First and last + 1 of the images of an identity, in `order`."""
        ends = *self.first, len(self.order)
        return ends[identity], ends[identity + 1]

    def allowed(self, q: int, own: int) -> np.ndarray:
        """(G,) whether an image can be drawn for a query of the identity number `own`."""
        if self.gallery_camids is None:
            return np.ones(len(self.order), bool)
        return self.gallery_camids != self.query_camids[q]

    def add_query(self, p: np.ndarray) -> None:
        """p (m, I): for each own image of the query, the probability that each identity ranks before it."""
        before = np.zeros((len(p), self.ranks))  # probability of k identities before the match, k < ranks
        before[:, 0] = 1
        for column in p.T:
            moved = before * column[:, None]
            before -= moved
            before[:, 1:] += moved[:, :-1]
        self.rows.append(before.mean(0).cumsum())

    def cmc(self) -> np.ndarray:
        """(K,) mean over the queries with a match."""
        return np.mean(self.rows, axis=0)


class SingleShotDraws(SingleGalleryShot):
    """The exact expectation of VehicleID's protocol: CMC and mAP over all draws of its gallery.

    Query and gallery hold the same images, and camids number the images of an identity, so that only the image
    itself is junk. One random image of each identity is the gallery and all others are queries, so an image of an
    identity with n images is a query in (n - 1) / n of the draws, and then each of the others is its match equally
    often. As each query has one match, its average precision is 1 / rank.
    """

    def __init__(self, query_pids, gallery_pids, query_camids=None, gallery_camids=None):
        query, gallery = [query_pids, query_camids], [gallery_pids, gallery_camids]
        known = query_camids is not None and np.array_equal(query, gallery)
        if not known or np.unique(gallery, axis=1).shape[1] < len(gallery_pids):
            raise InputError(
                "--cmc vehicleid needs a dataset whose test images are query and gallery, as prepare vehicleid_small "
                "makes it, and camids that number the images of an identity; use another --cmc"
            )
        super().__init__(query_pids, gallery_pids, query_camids, gallery_camids)
        self.weights: list[float] = []
        self.inverse_ranks: list[float] = []
        nodes, shares = np.polynomial.legendre.leggauss(QUADRATURE)
        self.below, self.shares = (1 - nodes) / 2, shares / 2  # 1 - t for nodes t of 0 .. 1

    def allowed(self, q: int, own: int) -> np.ndarray:
        """All images of other identities, and the other images of its own."""
        allowed = np.ones(len(self.order), bool)
        ours = slice(*self.images_of(own))
        allowed[ours] = self.gallery_camids[ours] != self.query_camids[q]
        return allowed

    def add_query(self, p: np.ndarray) -> None:
        """Also adds the expectation of 1 / (1 + K) for the number K of identities before the match.

        That is the integral over t = 0 .. 1 of the expectation of t^K, the product of 1 - p (1 - t) over the
        identities: a polynomial in t, which Gauss-Legendre quadrature integrates.
        """
        super().add_query(p)
        self.weights.append(len(p) / (len(p) + 1))
        powers = np.ones((len(p), QUADRATURE))
        for column in p.T:
            powers *= 1 - column[:, None] * self.below
        self.inverse_ranks.append(float((powers @ self.shares).mean()))

    def cmc(self) -> np.ndarray:
        """(K,) expectation over the draws; their number of queries is the same in all."""
        return np.average(self.rows, axis=0, weights=self.weights)

    def mean_ap(self) -> float:
        return float(np.average(self.inverse_ranks, weights=self.weights))


class CameraPairs:
    """mAP and Rank-1 for each query camera against each gallery camera alone."""

    def __init__(self, pairs: Pairs, query_camids: np.ndarray, gallery_camids: np.ndarray):
        self.query_camids = query_camids
        self.cameras: dict[int, tuple[np.ndarray, Pairs, list]] = {}  # gallery columns, their pairs, ranked blocks
        for camid in np.unique(gallery_camids).tolist():
            columns = np.flatnonzero(gallery_camids == camid)
            inside = gallery_camids[pairs.gallery] == camid
            gallery = np.searchsorted(columns, pairs.gallery[inside])
            self.cameras[camid] = columns, Pairs(pairs.query[inside], gallery, pairs.junk[inside]), []

    def add(self, distance, start: int) -> None:
        for columns, pairs, ranked in self.cameras.values():
            ranked.append(rank_rows(distance[:, columns], pairs, start))

    def table(self) -> list[dict]:
        """A row for each pair of cameras with a match: query_camid, gallery_camid, queries, map, rank1."""
        rows = []
        for camid, (columns, _, ranked) in self.cameras.items():
            ranking = Ranking.of(ranked, len(self.query_camids), len(columns))
            for query_camid in np.unique(self.query_camids[ranking.valid]):
                chosen = ranking.valid & (self.query_camids == query_camid)
                rows.append(
                    {
                        "query_camid": int(query_camid),
                        "gallery_camid": camid,
                        "queries": int(chosen.sum()),
                        "map": float(ranking.ap[chosen].mean()),
                        "rank1": float((ranking.first_match[chosen] == 1).mean()),
                    }
                )
        return rows
