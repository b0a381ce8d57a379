"""Which part of the body matched: the squared distance of two descriptors as a sum over their slots.

A descriptor is its S slots of width D joined, so |f - g|^2 = sum over the slots of |f_s - g_s|^2: nothing is
approximated, whatever the model and however the descriptors are scaled.
"""

from typing import Any

import numpy as np

CHUNK = 1 << 23  # numbers held at once


def layout(attrs: dict[str, Any], width: int) -> tuple[np.ndarray | None, str]:
    """((S, 2) top and bottom of each slot's band as fractions of the height, "") from a features file's attributes
    `slots` and `bands`; (None, why not) for files that do not say it or whose slots do not fill `width`."""
    if "slots" not in attrs or "bands" not in attrs:
        missing = " and ".join(name for name in ("slots", "bands") if name not in attrs)
        return None, f"the features file does not say which part of the body a number is from (no attribute {missing})"
    count, size = (int(n) for n in attrs["slots"])
    bands = np.asarray(attrs["bands"], np.float64)
    sound = bands.shape == (count, 2) and bool(
        ((bands >= 0) & (bands <= 1)).all() and (bands[:, 0] < bands[:, 1]).all()
    )
    if count * size != width or not sound:
        return None, f"{count} slots of {size} with bands of shape {bands.shape} do not fit features {width} wide"
    return bands, ""


def names(bands: np.ndarray) -> list[tuple[int, str]]:
    """(column, name) of each slot. A column is a run of slots that cuts the body from top to bottom.

    >>> names(np.array([[0, 0.5], [0.5, 1], [0, 1]]))
    [(0, '1 of 2'), (0, '2 of 2'), (1, 'whole')]
    """
    column = np.cumsum(np.append(True, bands[1:, 0] < bands[:-1, 1] - 1e-6)) - 1
    sizes = np.bincount(column)
    place = np.arange(len(bands)) - (np.cumsum(sizes) - sizes)[column] + 1
    return [(int(c), f"{i} of {sizes[c]}" if sizes[c] > 1 else "whole") for c, i in zip(column, place)]


def slot_distances(query: np.ndarray, gallery: np.ndarray, q: np.ndarray, g: np.ndarray, slots: int) -> np.ndarray:
    """(P, S) float64 squared distance in each slot of P pairs: rows q of query (Q, S x D) with rows g of gallery."""
    out = np.empty((len(q), slots))
    rows = max(1, CHUNK // query.shape[1])
    for i in range(0, len(q), rows):
        at = slice(i, i + rows)
        difference = query[q[at]].astype(np.float64) - gallery[g[at]]
        out[at] = np.square(difference).reshape(len(difference), slots, -1).sum(2)
    return out
