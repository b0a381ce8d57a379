"""Ranking: our evaluator beside the published one, on the same random distances in one process."""

import numpy as np
import torch

from reid.bench.measure import random_features, side_by_side, size_flags, table
from reid.errors import InputError
from reid.evaluation.distances import as_float32
from reid.evaluation.ranking import rank
from reid.evaluation.results import evaluate


def add_arguments(parser) -> None:
    size_flags(parser, queries=3368, gallery=15913, identities=751, cameras=6, width=256, repeat=5)
    parser.add_argument("--dtype", default="float32", choices=("float16", "float32"), help="of the stored features")


def main(arguments) -> int:
    a = arguments
    features = random_features(a.queries, a.gallery, a.identities, a.cameras, a.width, a.dtype)
    tiles = side_by_side({"features to result, in tiles": lambda: evaluate(features).mean_ap})
    rows = {}
    if not a.alone:
        q, g = features.query, features.gallery
        labels = (q.pids, g.pids, q.camids, g.camids)
        distance = -as_float32(q.features) @ as_float32(g.features).T
        forms = {"published": lambda: published(distance, *labels), "ours, NumPy": lambda: measures(distance, labels)}
        if torch.cuda.is_available():
            on_device = torch.from_numpy(distance).cuda()
            forms["ours, CUDA"] = lambda: measures(on_device, labels)
        rows = side_by_side(forms, a.repeat)
        for name, row in rows.items():
            assert abs(row.result[0] - rows["published"].result[0]) < 1e-9, f"{name} disagrees with the published form"
    mean_ap = next(iter(tiles.values())).result
    print(table(f"{a.queries} x {a.gallery} x {a.width}, mAP {mean_ap:.4f}", rows | tiles, "published"))
    return 0


def measures(distance, labels) -> tuple[float, np.ndarray]:
    ranking = rank(distance, *labels)
    return ranking.mean_ap, ranking.cmc


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
