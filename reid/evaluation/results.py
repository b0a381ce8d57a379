"""Features -> Result. Distances are computed, ranked and discarded block by block."""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from reid.data.labels import Labels
from reid.errors import InputError
from reid.evaluation.conventions import CameraPairs, SingleGalleryShot, SingleShotDraws
from reid.evaluation.distances import BLOCK_BYTES, Block, blocks, of_unit_length
from reid.evaluation.features import Features
from reid.evaluation.open_set import CONFIDENCE, mean_interval, open_set
from reid.evaluation.pooling import Tracks, multi_query
from reid.evaluation.ranking import Pairs, Ranking, check_labels, join, rank_rows, same_person
from reid.evaluation.record import USUAL, Record, Scoring
from reid.evaluation.rerank import PUBLISHED, expand_queries, reciprocal_blocks
from reid.files import write_csv, write_json

logger = logging.getLogger(__name__)

QUERY_COLUMNS = ("name", "pid", "camid", "matches", "first_match", "ap", "inp")
LABEL_COLUMNS = ("source", "identity", "camera")  # of a test whose identities or cameras have labels
RANKS = (1, 5, 10, 20)  # of the CMC, as printed
SHOTS: dict[str, type[SingleGalleryShot]] = {"cuhk03": SingleGalleryShot, "vehicleid": SingleShotDraws}
SAMPLE = 1024  # features of each side whose length is checked


@dataclass(frozen=True)
class Result:
    """The scores of an evaluation.

    cmcs: each computed CMC, (K,), by convention. open_set (open_set.open_set) and cameras
    (conventions.CameraPairs) are None if not requested. shot_map: mAP of VehicleID's protocol, None in others.
    """

    ranking: Ranking
    features: Features
    scoring: Scoring
    cmcs: dict[str, np.ndarray]
    open_set: dict[str, Any] | None
    cameras: list[dict] | None
    seconds: float
    shot_map: float | None = None

    @property
    def record(self) -> Record:
        return replace(self.features.record, scoring=self.scoring)

    @property
    def conventions(self) -> dict[str, str]:
        """The scoring in words."""
        s, k1, k2, weight = self.scoring, *PUBLISHED
        no_cameras = self.features.query.camids is None
        expansion = f"mean with {s.query_expansion} nearest"
        content = {
            "ap": s.ap if self.shot_map is None else "expected 1 / rank",
            "cmc": s.cmc,
            "metric": s.metric,
            "ties": "counted as wrong",
            "junk": "none: no cameras" if no_cameras else "same pid and camera",
            "reranking": f"k-reciprocal, k1 {k1}, k2 {k2}, lambda {weight}" if s.rerank else "none",
            "query expansion": expansion if s.query_expansion else "none",
        }
        if s.multi_query != "none":
            content["multi query"] = f"{s.multi_query} of the images of an identity and camera"
        if s.tracks:
            content["gallery"] = "tracks, at the distance of their nearest image"
        return content

    @property
    def aps(self) -> dict[str, np.ndarray]:
        """(Q,) average precision in every convention."""
        return {"step": self.ranking.ap, "trapezoid": self.ranking.ap_trapezoid}

    @property
    def ap(self) -> np.ndarray:
        """(Q,) in the chosen convention."""
        return self.aps[self.scoring.ap]

    @property
    def cmc(self) -> np.ndarray:
        return self.cmcs[self.scoring.cmc]

    @property
    def mean_ap(self) -> float:
        return self.maps["vehicleid" if self.shot_map is not None else self.scoring.ap]

    @property
    def maps(self) -> dict[str, float]:
        """mAP in every convention."""
        values = {name: float(np.nanmean(ap)) for name, ap in self.aps.items()}
        return values if self.shot_map is None else values | {"vehicleid": self.shot_map}

    @cached_property
    def intervals(self) -> dict[str, list[float]]:
        """95 % intervals by bootstrap over query identities: of map, and of rank1 of the market1501 CMC."""
        rank1 = np.where(self.ranking.valid, self.ranking.first_match == 1, np.nan)
        pids = self.features.query.pids
        return {"map": mean_interval(self.ap, pids), "rank1": mean_interval(rank1, pids)}

    @property
    def camera_rows(self) -> list[dict]:
        """The rows of `cameras`, with the labels of the cameras where there are any."""
        rows, labels = self.cameras or [], self.features.labels
        if not labels.cameras:
            return rows
        sides = ("query", "gallery")
        return [row | {f"{side}_camera": labels.camera(row[f"{side}_camid"]) for side in sides} for row in rows]

    def to_json(self) -> dict[str, Any]:
        r = self.ranking
        content = {
            "record": self.record.to_json(),
            "map": self.mean_ap,
            "cmc": self.cmc.tolist(),
            "minp": r.mean_inp,
            "n_query": r.n_query,
            "n_valid": r.n_valid,
            "n_gallery": r.n_gallery,
            "width": self.features.query.features.shape[1],
            "conventions": self.conventions,
            "time": round(self.seconds, 3),
            "intervals": self.intervals,
            "other_conventions": {"map": self.maps, "cmc": {name: cmc.tolist() for name, cmc in self.cmcs.items()}},
        }
        optional = {"open_set": self.open_set, "cameras": self.cameras and self.camera_rows}
        return content | {k: v for k, v in optional.items() if v is not None}

    def __str__(self) -> str:
        r = self.ranking
        sure = {k: f"[{low:.2%}, {high:.2%}]" for k, (low, high) in self.intervals.items()}
        left_out = r.n_query - r.n_valid
        without = f", {left_out} of them without a match left out" if left_out else ""
        lines = [
            f"mAP {self.mean_ap:.2%}  {ranks(self.cmc)}  mINP {r.mean_inp:.2%}",
            f"{r.n_query} queries{without}, {r.n_gallery} gallery images",
            "conventions: " + ", ".join(f"{k} {v}" for k, v in self.conventions.items()),
            *(f"  mAP {name:<12}{value:.2%}" for name, value in self.maps.items()),
            *(f"  CMC {name:<12}{ranks(cmc)}" for name, cmc in self.cmcs.items()),
            f"{CONFIDENCE:.0%} intervals over query identities: mAP {sure['map']}, Rank-1 (market1501) {sure['rank1']}",
        ]
        if self.open_set:
            lines += open_set_lines(self.open_set, self.scoring.metric)
        if self.cameras:
            lines.append(camera_table(self.cameras, self.features.labels))
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Writes result.json, and queries.csv with one line per query: QUERY_COLUMNS, then LABEL_COLUMNS if given."""
        write_json(folder / "result.json", self.to_json())
        r, query, labels = self.ranking, self.features.query, self.features.labels
        camids: Any = [""] * r.n_query if query.camids is None else query.camids
        columns = [query.names, query.pids, camids, r.matches, r.first_match, self.ap, r.inp]
        titles: tuple[str, ...] = QUERY_COLUMNS
        if labels.given:
            titles += LABEL_COLUMNS
            columns.append([labels.source(name) for name in query.names])
            columns.append([labels.identity(pid) for pid in query.pids])
            columns.append(["" if query.camids is None else labels.camera(camid) for camid in camids])
        rows = ([None if isinstance(v, float) and np.isnan(v) else v for v in row] for row in zip(*columns))
        write_csv(folder / "queries.csv", titles, rows)


def ranks(cmc: np.ndarray) -> str:
    return "  ".join(f"Rank-{k} {cmc[k - 1]:.2%}" for k in RANKS if k <= len(cmc))


def open_set_lines(found: dict[str, Any], metric: str) -> list[str]:
    metric = metric.replace("euclidean", "squared euclidean")
    low, high = found["threshold_interval"]
    rates = ", ".join(f"{tpr:.2%} at {fpr}" for fpr, tpr in found["tpr"].items())
    pairs = f"{found['n_same']} same, {found['n_different']} wrong pairs"
    lines = [
        f"true accepts at false accepts: {rates} ({pairs})",
        f"threshold for {found['fpr']:g} false accepts: "
        f"{metric} distance <= {found['threshold']:.4g} [{low:.4g}, {high:.4g}]",
    ]
    return lines + ([unreachable(found)] if "n_equal" in found else [])


def unreachable(found: dict[str, Any]) -> str:
    """Why no threshold has as few false accepts as were asked for."""
    return (
        f"no threshold has only {found['fpr']:g} false accepts: {found['n_equal']:,} wrong pairs have distance 0; "
        "look for images that are stored under two identities"
    )


def camera_table(rows: list[dict], labels: Labels) -> str:
    """mAP / Rank-1 in percent: one line per query camera, one column per gallery camera."""
    cells = {(row["query_camid"], row["gallery_camid"]): f"{row['map']:.1%}/{row['rank1']:.1%}" for row in rows}
    queries, galleries = (sorted({pair[i] for pair in cells}) for i in (0, 1))
    lines = ["mAP/Rank-1 of query camera (line) against gallery camera (column) alone"]
    names = {camid: labels.camera(camid) for camid in (*queries, *galleries)}
    first, rest = (max([least, *(len(name) + 2 for name in names.values())]) for least in (6, 14))
    lines.append(" " * first + "".join(f"{names[g]:>{rest}}" for g in galleries))
    for q in queries:
        lines.append(f"{names[q]:>{first}}" + "".join(f"{cells.get((q, g), '-'):>{rest}}" for g in galleries))
    return "\n".join(lines)


def warn_of_lengths(features: Features, metric: str) -> None:
    """Warns of Euclidean distances between features of other lengths than 1."""
    sides = features.query.features, features.gallery.features
    if metric == "euclidean" and not all(of_unit_length(side[:SAMPLE]) for side in sides):
        logger.warning(
            "the features are not of unit length, and Euclidean distances depend on their lengths; "
            "cosine is usual for such features: --metric cosine"
        )


def evaluate(
    features: Features,
    scoring: Scoring = USUAL,
    *,
    camera_pairs: bool = False,
    fpr: float | None = None,
    device=None,
    limit: int = BLOCK_BYTES,
) -> Result:
    """The Result of features, computed in blocks of `limit` bytes to bound the memory beyond the features.

    camera_pairs: adds mAP and Rank-1 by pair of cameras. fpr: scores pairs as an open set, with the threshold for
    this rate of false accepts, on distances before re-ranking. device: a CUDA device; None for NumPy on the CPU.
    Raises InputError for an empty side, labels that disagree, no query with a match.
    """
    started = time.perf_counter()
    features = as_scored(features, scoring)
    query, gallery = features.query, features.gallery
    labels = check_labels(query.pids, gallery.pids, query.camids, gallery.camids)
    if camera_pairs and labels[2] is None:
        raise InputError("--camera_pairs needs camids, and these features have none")
    warn_of_lengths(features, scoring.metric)
    settings = {"metric": scoring.metric, "device": device, "limit": limit}
    plain = partial(blocks, **settings)
    queries = query.features
    if scoring.query_expansion:
        queries = expand_queries(queries, gallery.features, scoring.query_expansion, **settings)
    tracks = Tracks.of(features) if scoring.tracks else None
    entries = [labels[0], tracks.pids, labels[2], tracks.camids] if tracks else labels
    pairs = same_person(*entries)
    shots = SHOTS[scoring.cmc](*entries) if scoring.cmc in SHOTS else None
    table = CameraPairs(pairs, entries[2], entries[3]) if camera_pairs else None
    distances = partial(reciprocal_blocks, **settings) if scoring.rerank else plain
    found = distances(queries, gallery.features)
    ranked = list(rank_blocks(found, pairs, tracks, [other for other in (shots, table) if other]))
    ranking = join(ranked, len(query), len(entries[1]))
    cmcs = {"market1501": ranking.cmc, "allshots": ranking.cmc_allshots}
    if shots:
        cmcs[scoring.cmc] = shots.cmc()
    shot_map = shots.mean_ap() if isinstance(shots, SingleShotDraws) else None
    accepts = None
    if fpr is not None:
        same = same_person(*labels) if tracks else pairs
        accepts = open_set(queries, gallery.features, labels[0], same, fpr, plain)
    cameras = table.table() if table else None
    return Result(ranking, features, scoring, cmcs, accepts, cameras, time.perf_counter() - started, shot_map)


def as_scored(features: Features, scoring: Scoring) -> Features:
    """The features with pooled queries, or without cameras, if the scoring asks for it."""
    if scoring.multi_query != "none":
        features = multi_query(features, scoring.multi_query)
    if scoring.cameras:
        return features
    query, gallery = (replace(side, camids=None) for side in (features.query, features.gallery))
    return replace(features, query=query, gallery=gallery)


def rank_blocks(found: Iterable[Block], pairs: Pairs, tracks: Tracks | None, others: list) -> Iterator[tuple]:
    """The ranked rows of each block, for `join`. others: further measures that each block of distances is added to."""
    for block in found:
        keys = tracks.nearest(block.keys) if tracks else block.keys
        for other in others:
            other.add(keys, block.start)
        yield rank_rows(keys, pairs, block.start)
