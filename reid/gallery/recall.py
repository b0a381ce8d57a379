"""Recall of a gallery's search against the exact one."""

import numpy as np

from reid.errors import InputError
from reid.gallery.store import Entries, Store, rows_at_once

TOP = 10
ROUNDING = 1e-5  # of a distance in float32


def recall(gallery: Store, entries: Entries, count: int) -> float:
    """Recall at 10 of `count` entries of the gallery as queries: the share of answers as near as the exact ones.

    Every distance is computed here, in blocks. Raises InputError for an empty gallery.
    """
    if not len(entries.names):
        raise InputError(f"{gallery.address} is empty; recall needs entries")
    rows = np.unique(np.linspace(0, len(entries.names) - 1, count).astype(int))
    queries = np.concatenate([entries.features[i : i + 1] for i in rows]).astype(np.float32)
    nearest = np.empty((len(rows), 0), np.float32)
    step = rows_at_once(max(gallery.width, len(rows)))
    for i in range(0, len(entries.names), step):
        block = np.asarray(entries.features[i : i + step], np.float32)
        nearest = np.sort(np.concatenate([nearest, 2 - 2 * queries @ block.T], 1), 1)[:, :TOP]
    found = gallery.search(queries, nearest.shape[1])
    hits = [(a.distances <= limit + ROUNDING).sum() for a, limit in zip(found, nearest[:, -1])]
    return float(np.sum(hits) / nearest.size)
