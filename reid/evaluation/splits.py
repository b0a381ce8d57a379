"""The scores of several splits of one protocol, and their mean and standard deviation."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from reid.evaluation.record import Record, with_words
from reid.evaluation.results import Result
from reid.files import write_json

RANKS = (1, 5, 10)


@dataclass(frozen=True)
class Scored:
    """One evaluation: its record, the folder of its result, and mAP, Rank-k and mINP in 0..1."""

    record: Record
    folder: Path
    scores: dict[str, float]

    @classmethod
    def of(cls, result: Result, folder: Path) -> "Scored":
        ranks = {f"Rank-{k}": float(result.cmc[k - 1]) for k in RANKS if k <= len(result.cmc)}
        scores = {"mAP": result.mean_ap, **ranks, "mINP": result.ranking.mean_inp}
        return cls(result.record, folder, scores)


def summary(splits: Sequence[Scored]) -> dict[str, Any]:
    """The content of splits.json. The deviation is that of a sample (n - 1)."""
    names = [name for name in splits[0].scores if all(name in s.scores for s in splits)]
    values = {name: [s.scores[name] for s in splits] for name in names}
    return {
        "splits": [s.record.split for s in splits],
        "records": [s.record.digest for s in splits],
        "folders": [s.folder.name for s in splits],
        "scores": {k: {"mean": mean(v), "deviation": stdev(v), "values": v} for k, v in values.items()},
    }


def as_text(content: dict[str, Any]) -> str:
    """One line per split, and the means."""
    scores, count = content["scores"], len(content["splits"])
    lines = []
    for i, split in enumerate(content["splits"]):
        lines.append(f"split {split:<4}" + "".join(f"  {k} {v['values'][i]:.2%}" for k, v in scores.items()))
    means = "  ".join(f"{k} {100 * v['mean']:.2f} ± {100 * v['deviation']:.2f} %" for k, v in scores.items())
    return "\n".join([*lines, f"mean ± standard deviation over {count} splits: {means}"])


def save(content: dict[str, Any], wanted: Path) -> Path:
    """Writes splits.json into `wanted`, or beside it if `wanted` has that of other evaluations. Returns the folder."""
    folder = wanted
    with suppress(OSError, ValueError, TypeError, KeyError):  # missing or damaged: replaced
        if json.loads((folder / "splits.json").read_text(encoding="utf-8"))["records"] != content["records"]:
            digest = hashlib.sha256(" ".join(content["records"]).encode()).hexdigest()
            folder = with_words(wanted, [digest[:8]])
    write_json(folder / "splits.json", content)
    return folder
