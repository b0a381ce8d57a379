"""Ranking: our evaluator and the published one, on the same random distances."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from reid.bench.measure import check_close, random_features, side_by_side, table
from reid.errors import InputError
from reid.evaluation.distances import as_float32
from reid.evaluation.ranking import rank
from reid.evaluation.results import evaluate


def run(a) -> Iterator[str]:
    features = random_features(a.queries, a.gallery, a.identities, a.cameras, a.width, a.dtype)
    tiles = "features to result, in tiles"
    rows = side_by_side({tiles: lambda: evaluate(features).mean_ap})
    if not a.alone:
        scikit_learn_ap()  # imported before the measurement
        query, gallery = features.query, features.gallery
        labels: tuple[Any, ...] = (query.pids, gallery.pids, query.camids, gallery.camids)
        distance = -as_float32(query.features) @ as_float32(gallery.features).T
        forms = {
            "published": lambda: published(distance, *labels)[0],
            "ours, NumPy": lambda: measures(distance, labels)[0],
        }
        if torch.cuda.is_available():
            on_device = torch.from_numpy(distance).cuda()
            forms["ours, CUDA"] = lambda: measures(on_device, labels)[0]
        rows = side_by_side(forms, a.repeat) | rows
        check_close(rows, forms, 1e-9)
    title = f"{a.queries} x {a.gallery} x {a.width}, mAP {rows[tiles].result:.4f}"
    yield table(title, rows, "published")


def measures(distance, labels) -> tuple[float, np.ndarray]:
    """(mAP, CMC) by our ranking."""
    ranking = rank(distance, *labels)
    return ranking.mean_ap, ranking.cmc


def published(
    distance: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
) -> tuple[float, np.ndarray]:
    """(mAP, CMC) as computed by the evaluator of RRID (Open-ReID's).

    It sorts all distances, then scores each query with scikit-learn; it sorts again for the CMC.
    """
    average_precision = scikit_learn_ap()

    def ranked() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(query, its sorted gallery without junk, whether each is a match) of each query with a match."""
        order = np.argsort(distance, axis=1)
        matches = gallery_pids[order] == query_pids[:, None]
        for i, row in enumerate(order):
            other_camera = gallery_camids[row] != query_camids[i]
            kept = (gallery_pids[row] != query_pids[i]) | other_camera
            if matches[i, kept].any():
                yield i, row[kept], matches[i, kept]

    precisions = [average_precision(match, -distance[i, row]) for i, row, match in ranked()]
    firsts = np.array([np.flatnonzero(match)[0] for _, _, match in ranked()])
    cmc = [(firsts <= k).mean() for k in range(50)]
    return float(np.mean(precisions)), np.array(cmc)


def scikit_learn_ap() -> Callable[[np.ndarray, np.ndarray], float]:
    try:
        from sklearn.metrics import average_precision_score
    except ImportError as e:
        raise InputError("the published evaluator needs scikit-learn: pip install scikit-learn, or give --alone") from e
    return average_precision_score
