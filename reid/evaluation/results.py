"""Features -> Result: distances are made, ranked and dropped block by block; the Result prints and saves itself."""

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reid.errors import InputError
from reid.evaluation.distances import BLOCK_BYTES, blocks
from reid.evaluation.features import Features
from reid.evaluation.ranking import Ranking, check_labels, join, rank_rows, same_person
from reid.runs import atomic_file, write_json

AP, CMC = ("step", "trapezoid"), ("market1501", "allshots")


@dataclass(frozen=True)
class Result:
    """What an evaluation found: all measures of `ranking`, and how they were made."""

    ranking: Ranking
    features: Features
    conventions: dict[str, str]
    seconds: float

    @property
    def ap(self) -> np.ndarray:
        """(Q,) in the chosen convention."""
        return self.ranking.ap if self.conventions["ap"] == "step" else self.ranking.ap_trapezoid

    @property
    def cmc(self) -> np.ndarray:
        return self.ranking.cmc if self.conventions["cmc"] == "market1501" else self.ranking.cmc_allshots

    @property
    def mean_ap(self) -> float:
        return float(np.nanmean(self.ap))

    def to_json(self) -> dict[str, Any]:
        r = self.ranking
        return {
            "map": self.mean_ap,
            "cmc": self.cmc.tolist(),
            "minp": r.mean_inp,
            "n_query": r.n_query,
            "n_valid": r.n_valid,
            "n_gallery": r.n_gallery,
            "conventions": self.conventions,
            "weights": self.features.attrs.get("weights"),
            "dataset": self.features.attrs.get("dataset"),
            "time": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        r = self.ranking
        ranks = "  ".join(f"Rank-{k} {self.cmc[k - 1]:.2%}" for k in (1, 5, 10, 20) if k <= len(self.cmc))
        left_out = f", {r.n_query - r.n_valid} without a match left out" if r.n_query > r.n_valid else ""
        return (
            f"mAP {self.mean_ap:.2%}  {ranks}  mINP {r.mean_inp:.2%}\n"
            f"{r.n_query} queries{left_out}, {r.n_gallery} gallery images; "
            + ", ".join(f"{k} {v}" for k, v in self.conventions.items())
        )

    def save(self, folder: Path) -> None:
        """result.json, and queries.csv with a line for each query."""
        write_json(folder / "result.json", self.to_json())
        r, query = self.ranking, self.features.query
        with atomic_file(folder / "queries.csv") as temporary, open(temporary, "w", newline="") as f:
            out = csv.writer(f)
            out.writerow(["name", "pid", "camid", "matches", "first_match", "ap", "inp"])
            camids = [""] * r.n_query if query.camids is None else query.camids
            for row in zip(query.names, query.pids, camids, r.matches, r.first_match, self.ap, r.inp):
                out.writerow(["" if isinstance(v, float) and np.isnan(v) else v for v in row])


def evaluate(
    features: Features,
    ap: str = "step",
    cmc: str = "market1501",
    metric: str = "euclidean",
    device="cpu",
    limit: int = BLOCK_BYTES,
) -> Result:
    """The Result of features. Memory beyond them stays near `limit` bytes for any gallery.

    Raises InputError for an empty side, labels that disagree, or no query with a match."""
    started = time.perf_counter()
    for flag, value, choices in (("--ap", ap, AP), ("--cmc", cmc, CMC)):
        if value not in choices:
            raise InputError(f"{flag} {value} is unknown; choose from {', '.join(choices)}")
    query, gallery = features.query, features.gallery
    labels = check_labels(query.pids, gallery.pids, query.camids, gallery.camids)
    pairs = same_person(*labels)
    on_cpu = torch.device(device).type == "cpu"
    parts = []
    for block in blocks(query.features, gallery.features, metric, device, limit):
        parts.append(rank_rows(block.keys.numpy() if on_cpu else block.keys, pairs, block.start))
    ranking = join(parts, len(query), len(gallery))
    cameras = "none" if query.camids is None else "same camera is junk"
    conventions = {"ap": ap, "cmc": cmc, "metric": metric, "cameras": cameras}
    return Result(ranking, features, conventions, time.perf_counter() - started)
