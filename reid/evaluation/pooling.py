"""Several images as one: the descriptors of a query's images, and the images of a gallery track."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from reid.errors import InputError
from reid.evaluation.distances import on_host
from reid.evaluation.features import Features, Part

logger = logging.getLogger(__name__)

POOLS: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "max": np.max}


def pool(features: np.ndarray, how: str) -> np.ndarray:
    """(F,) float32: the mean or the elementwise maximum of descriptors (n, F), at their mean length.

    Zheng et al. 2015 pool the images of a query in these two ways. Raises InputError if the result is zero.
    """
    pooled = POOLS[how](features.astype(np.float32), axis=0)
    length = np.linalg.norm(pooled)
    if not length:
        raise InputError(f"the {how} of {len(features)} descriptors is zero; search with other images, or one by one")
    return pooled * (np.linalg.norm(features.astype(np.float32), axis=1).mean() / length)


def multi_query(features: Features, how: str) -> Features:
    """One query for each identity and camera: pooled from its images in features.several, else from its queries.

    Without camids, the images of an identity are pooled. A pooled query has the name of its first query image.
    """
    query, several = features.query, features.several or features.query
    keys, others = keys_of(query), keys_of(several)
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, key in enumerate(others):
        rows.setdefault(key, []).append(i)
    first = {key: i for i, key in reversed([*enumerate(keys)])}
    if absent := [query.names[i] for key, i in first.items() if key not in rows]:
        raise InputError(f"{len(absent):,} queries have no images for --multi_query, the first: {absent[0]}")
    order = sorted(first.values())
    if len(order) == len(keys) and not features.several:
        logger.warning("--multi_query changes nothing: each identity and camera has one query image")
    pooled = np.stack([pool(several.features[rows[keys[i]]], how) for i in order])
    camids = None if query.camids is None else query.camids[order]
    part = Part(pooled, query.pids[order], camids, [query.names[i] for i in order])
    return replace(features, query=part, several=None)


def keys_of(part: Part) -> list[tuple[int, ...]]:
    """(pid, camid) of each image; (pid,) without cameras."""
    columns = [part.pids] if part.camids is None else [part.pids, part.camids]
    return [*zip(*(column.tolist() for column in columns))]


@dataclass(frozen=True)
class Tracks:
    """The tracks of a gallery: images of one identity that one camera saw in succession.

    order: the gallery rows (G,) by track. first: where each track begins in it (T,). pids, camids: (T,).
    """

    order: np.ndarray
    first: np.ndarray
    pids: np.ndarray
    camids: np.ndarray | None

    @classmethod
    def of(cls, features: Features) -> "Tracks":
        """Raises InputError for images without a track, and for a track with two identities or cameras."""
        gallery, known = features.gallery, features.labels.tracks
        if absent := sum(name not in known for name in gallery.names):
            raise InputError(
                f"--tracks: {absent:,} of {len(gallery):,} gallery images have no track; VeRi-776 has them where "
                "test_track.txt is beside its images"
            )
        _, number = np.unique([known[name] for name in gallery.names], return_inverse=True)
        order = np.argsort(number, kind="stable")
        first = np.searchsorted(number[order], np.arange(number.max() + 1))
        keys = keys_of(gallery)
        for row, track in zip(order, number[order]):
            if keys[row] != keys[order[first[track]]]:
                track_name = known[gallery.names[row]]
                raise InputError(f"track {track_name} has images of two identities or cameras; correct test_track.txt")
        heads = order[first]
        return cls(order, first, gallery.pids[heads], None if gallery.camids is None else gallery.camids[heads])

    def nearest(self, distance) -> np.ndarray:
        """(n, T) the smallest distance in each track, of distances (n, G)."""
        return np.minimum.reduceat(on_host(distance)[:, self.order], self.first, axis=1)
