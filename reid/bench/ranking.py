"""Ranking: our evaluator beside the published one, on the same random distances in one process."""

import numpy as np

from reid.errors import InputError


def published(distance, query_pids, gallery_pids, query_camids, gallery_camids) -> tuple[float, np.ndarray]:
    """mAP and CMC as RRID's (Open-ReID's) evaluator makes them: argsort, then scikit-learn for each query."""
    try:
        from sklearn.metrics import average_precision_score
    except ImportError as e:
        raise InputError("the published evaluator needs scikit-learn: pip install scikit-learn") from e
    order = np.argsort(distance, axis=1)
    matches = gallery_pids[order] == query_pids[:, None]
    precisions = []
    for i in range(len(query_pids)):
        kept = (gallery_pids[order[i]] != query_pids[i]) | (gallery_camids[order[i]] != query_camids[i])
        if matches[i, kept].any():
            precisions.append(average_precision_score(matches[i, kept], -distance[i][order[i]][kept]))
    order = np.argsort(distance, axis=1)  # the published code sorts again for the CMC
    matches = gallery_pids[order] == query_pids[:, None]
    cmc = np.zeros(50)
    valid = 0
    for i in range(len(query_pids)):
        kept = (gallery_pids[order[i]] != query_pids[i]) | (gallery_camids[order[i]] != query_camids[i])
        if not matches[i, kept].any():
            continue
        valid += 1
        first = np.flatnonzero(matches[i, kept])[0]
        if first < 50:
            cmc[first] += 1
    return float(np.mean(precisions)), np.cumsum(cmc) / valid
