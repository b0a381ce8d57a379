"""Features -> Result: distances are made, ranked and dropped block by block; the Result prints and saves itself."""

import csv
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from reid.errors import InputError
from reid.evaluation.conventions import CameraPairs, SingleGalleryShot
from reid.evaluation.distances import BLOCK_BYTES, METRICS, blocks, on_host
from reid.evaluation.features import Features
from reid.evaluation.open_set import CONFIDENCE, mean_interval, open_set
from reid.evaluation.ranking import Ranking, check_labels, join, rank_rows, same_person
from reid.evaluation.rerank import K1, K2, WEIGHT, expand_queries, reciprocal_blocks
from reid.files import atomic_file, write_json

AP = ("step", "trapezoid")
CMC = ("market1501", "allshots", "cuhk03")
QUERY_COLUMNS = ("name", "pid", "camid", "matches", "first_match", "ap", "inp")


@dataclass(frozen=True)
class Result:
    """What an evaluation found, and how. cmcs has every CMC that was made, each (K,), by its convention; open_set
    (open_set.open_set) and cameras (conventions.CameraPairs) are None when not asked for."""

    ranking: Ranking
    features: Features
    conventions: dict[str, str]
    cmcs: dict[str, np.ndarray]
    open_set: dict[str, Any] | None
    cameras: list[dict] | None
    seconds: float

    @property
    def aps(self) -> dict[str, np.ndarray]:
        """(Q,) average precision in every convention."""
        return {"step": self.ranking.ap, "trapezoid": self.ranking.ap_trapezoid}

    @property
    def ap(self) -> np.ndarray:
        """(Q,) in the chosen convention."""
        return self.aps[self.conventions["ap"]]

    @property
    def cmc(self) -> np.ndarray:
        return self.cmcs[self.conventions["cmc"]]

    @property
    def mean_ap(self) -> float:
        return float(np.nanmean(self.ap))

    @cached_property
    def intervals(self) -> dict[str, list[float]]:
        """95 % intervals by bootstrap over query identities: of map, and of rank1 of the market1501 CMC."""
        rank1 = np.where(self.ranking.valid, self.ranking.first_match == 1, np.nan)
        pids = self.features.query.pids
        return {"map": mean_interval(self.ap, pids), "rank1": mean_interval(rank1, pids)}

    def to_json(self) -> dict[str, Any]:
        r = self.ranking
        content = {
            "map": self.mean_ap,
            "cmc": self.cmc.tolist(),
            "minp": r.mean_inp,
            "n_query": r.n_query,
            "n_valid": r.n_valid,
            "n_gallery": r.n_gallery,
            "conventions": self.conventions,
            "weights": self.features.attrs.get("weights"),
            "dataset": self.features.attrs.get("dataset"),
            "size": self.features.attrs.get("size"),
            "precision": self.features.attrs.get("precision"),
            "time": round(self.seconds, 3),
            "intervals": self.intervals,
            "other_conventions": {
                "map": {name: float(np.nanmean(ap)) for name, ap in self.aps.items()},
                "cmc": {name: cmc.tolist() for name, cmc in self.cmcs.items()},
            },
        }
        return content | {k: getattr(self, k) for k in ("open_set", "cameras") if getattr(self, k) is not None}

    def __str__(self) -> str:
        r, sure = self.ranking, {k: f"[{low:.2%}, {high:.2%}]" for k, (low, high) in self.intervals.items()}
        left_out = f", {r.n_query - r.n_valid} of them without a match left out" if r.n_query > r.n_valid else ""
        lines = [
            f"mAP {self.mean_ap:.2%}  {ranks(self.cmc)}  mINP {r.mean_inp:.2%}",
            f"{r.n_query} queries{left_out}, {r.n_gallery} gallery images",
            "conventions: " + ", ".join(f"{k} {v}" for k, v in self.conventions.items()),
            *(f"  mAP {name:<12}{np.nanmean(ap):.2%}" for name, ap in self.aps.items()),
            *(f"  CMC {name:<12}{ranks(cmc)}" for name, cmc in self.cmcs.items()),
            f"{CONFIDENCE:.0%} intervals over query identities: mAP {sure['map']}, Rank-1 (market1501) {sure['rank1']}",
        ]
        if self.open_set:
            o, metric = self.open_set, self.conventions["metric"].replace("euclidean", "squared euclidean")
            low, high = o["threshold_interval"]
            rates = ", ".join(f"{tpr:.2%} at {fpr}" for fpr, tpr in o["tpr"].items())
            lines += [
                f"true accepts at false accepts: {rates} ({o['n_same']} same, {o['n_different']} wrong pairs)",
                f"threshold for {o['fpr']:g} false accepts: {metric} distance <= {o['threshold']:.4g} "
                f"[{low:.4g}, {high:.4g}]",
            ]
        return "\n".join(lines + ([camera_table(self.cameras)] if self.cameras else []))

    def save(self, folder: Path) -> None:
        """result.json, and queries.csv with a line for each query."""
        write_json(folder / "result.json", self.to_json())
        r, query = self.ranking, self.features.query
        camids = [""] * r.n_query if query.camids is None else query.camids
        with atomic_file(folder / "queries.csv") as temporary, open(temporary, "w", newline="") as f:
            out = csv.writer(f)
            out.writerow(QUERY_COLUMNS)
            for row in zip(query.names, query.pids, camids, r.matches, r.first_match, self.ap, r.inp):
                out.writerow(["" if isinstance(v, float) and np.isnan(v) else v for v in row])


def ranks(cmc: np.ndarray) -> str:
    return "  ".join(f"Rank-{k} {cmc[k - 1]:.2%}" for k in (1, 5, 10, 20) if k <= len(cmc))


def camera_table(rows: list[dict]) -> str:
    """mAP / Rank-1 in percent, a line for each query camera, a column for each gallery camera."""
    cells = {(row["query_camid"], row["gallery_camid"]): f"{row['map']:.1%}/{row['rank1']:.1%}" for row in rows}
    queries, galleries = (sorted({pair[i] for pair in cells}) for i in (0, 1))
    lines = ["mAP/Rank-1 of query camera (line) against gallery camera (column) alone"]
    lines.append(f"{'':>6}" + "".join(f"{g:>14}" for g in galleries))
    lines += [f"{q:>6}" + "".join(f"{cells.get((q, g), '-'):>14}" for g in galleries) for q in queries]
    return "\n".join(lines)


def evaluate(
    features: Features,
    ap: str = "step",
    cmc: str = "market1501",
    metric: str = "euclidean",
    rerank: bool = False,
    query_expansion: int = 0,
    cameras: bool = True,
    camera_pairs: bool = False,
    fpr: float | None = None,
    device=None,
    limit: int = BLOCK_BYTES,
) -> Result:
    """The Result of features, in blocks of `limit` bytes, so that memory beyond the features stays near it.

    ap, cmc, metric: conventions, described at Ranking, SingleGalleryShot and distances.blocks. rerank: k-reciprocal
    encoding; query_expansion: with how many neighbours, 0 for none. cameras=False: nothing is junk. camera_pairs: a
    table of camera against camera. fpr: pairs as an open set, with the threshold for this rate of false accepts, on
    distances before re-ranking. device: a CUDA device; None for NumPy on the CPU. Raises InputError for an empty
    side, labels that disagree, no query with a match, unknown conventions.
    """
    started = time.perf_counter()
    for flag, value, choices in (("--ap", ap, AP), ("--cmc", cmc, CMC), ("--metric", metric, METRICS)):
        if value not in choices:
            raise InputError(f"{flag} {value} is unknown; choose from {', '.join(choices)}")
    if not cameras:
        sides = (replace(side, camids=None) for side in (features.query, features.gallery))
        features = Features(*sides, features.attrs)
    query, gallery = features.query, features.gallery
    labels = check_labels(query.pids, gallery.pids, query.camids, gallery.camids)
    if camera_pairs and labels[2] is None:
        raise InputError("--camera_pairs needs camids, and these features have none")
    pairs = same_person(*labels)
    queries = query.features
    if query_expansion:
        queries = expand_queries(queries, gallery.features, query_expansion, metric, device, limit)
    shots = SingleGalleryShot(*labels) if cmc == "cuhk03" else None
    table = CameraPairs(pairs, labels[2], labels[3]) if camera_pairs else None
    ranked = []
    for block in (reciprocal_blocks if rerank else blocks)(queries, gallery.features, metric, device, limit):
        ranked.append(rank_rows(block.keys, pairs, block.start))
        if shots:
            shots.add(on_host(block.keys), block.start)
        if table:
            table.add(block.keys, block.start)
    del block  # the open set needs its memory
    ranking = join(ranked, len(query), len(gallery))
    cmcs = {"market1501": ranking.cmc, "allshots": ranking.cmc_allshots}
    conventions = {
        "ap": ap,
        "cmc": cmc,
        "metric": metric,
        "ties": "never flatter",
        "junk": "none: no cameras" if labels[2] is None else "same pid and camera",
        "reranking": f"k-reciprocal, k1 {K1}, k2 {K2}, lambda {WEIGHT}" if rerank else "none",
        "query expansion": f"mean with {query_expansion} nearest" if query_expansion else "none",
    }
    return Result(
        ranking,
        features,
        conventions,
        cmcs | ({"cuhk03": shots.cmc()} if shots else {}),
        open_set(queries, gallery.features, labels[0], pairs, fpr, metric, device, limit) if fpr is not None else None,
        table.table() if table else None,
        time.perf_counter() - started,
    )
