"""Which part matched: the squared distance of two descriptors, split into their slots.

A descriptor is its S slots of width D joined, so |f - g|^2 is the sum of |f_s - g_s|^2 over the slots s. This is exact
for every model and every scale of the descriptors.
"""

from typing import Any

import numpy as np

CHUNK = 1 << 23  # numbers held at once


def layout(attrs: dict[str, Any], width: int) -> tuple[np.ndarray | None, str]:
    """Where the slots of a features file are in the image, from its attributes `slots` (S, D) and `bands` (S, 2).

    Returns (bands, ""): top and bottom of each slot's band as fractions of the height. (None, reason) where an
    attribute is missing or the slots do not fill the `width` of a descriptor.
    """
    missing = [name for name in ("slots", "bands") if name not in attrs]
    if missing:
        return None, f"the features file has no attribute {' and '.join(missing)}"
    count, size = (int(n) for n in attrs["slots"])
    bands = np.asarray(attrs["bands"], np.float64)
    valid = bands.shape == (count, 2) and count * size == width
    if not valid or (bands < 0).any() or (bands > 1).any() or (bands[:, 0] >= bands[:, 1]).any():
        return None, f"{count} slots of {size} with bands of shape {bands.shape} do not fit features {width} wide"
    return bands, ""


def names(bands: np.ndarray) -> list[tuple[int, str]]:
    """(column, name) of each slot. The slots of a column cover the image from top to bottom once.

    >>> names(np.array([[0, 0.5], [0.5, 1], [0, 1]]))
    [(0, '1 of 2'), (0, '2 of 2'), (1, 'whole')]
    """
    starts_column = np.append(True, bands[1:, 0] < bands[:-1, 1] - 1e-6)
    column = np.cumsum(starts_column) - 1
    sizes = np.bincount(column)
    place = np.arange(len(bands)) - np.flatnonzero(starts_column)[column] + 1
    return [(int(c), f"{i} of {sizes[c]}" if sizes[c] > 1 else "whole") for c, i in zip(column, place)]


def places(bands: np.ndarray) -> list[dict[str, Any]]:
    """Each slot as bands.js draws it: top and bottom as fractions of the height, column, name."""
    return [
        {"top": top, "bottom": bottom, "column": column, "name": name}
        for (top, bottom), (column, name) in zip(bands.tolist(), names(bands))
    ]


def slot_distances(query: np.ndarray, gallery: np.ndarray, q: np.ndarray, g: np.ndarray, slots: int) -> np.ndarray:
    """(P, S) float64 squared distance in each slot of P pairs: rows q of query (Q, S x D), rows g of gallery."""
    found = np.empty((len(q), slots))
    rows = max(1, CHUNK // query.shape[1])
    for start in range(0, len(q), rows):
        some = slice(start, start + rows)
        difference = query[q[some]].astype(np.float64) - gallery[g[some]]
        found[some] = np.square(difference).reshape(len(difference), slots, -1).sum(2)
    return found
