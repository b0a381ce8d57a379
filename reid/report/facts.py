"""How a result was made: what is needed to repeat it, and which scores are published for it."""

import json
import shlex
from pathlib import Path
from typing import Any

from reid.config import Config, in_words
from reid.errors import InputError
from reid.evaluation.record import USUAL, Record
from reid.evaluation.results import Result
from reid.profiles import profile
from reid.report.published import published
from reid.runs import read_config

VERSIONS = {"time", "command", "commit", "python", "packages", "machine", "cuda"}
Rows = list[tuple[str, str]]  # (name, value)


def read_versions(run: Path) -> list[dict[str, Any]]:
    """One entry per start of the training. Raises InputError."""
    path = run / "versions.json"
    try:
        starts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except ValueError:  # damaged
        starts = None
    if not isinstance(starts, list) or not all(isinstance(s, dict) and s.keys() >= VERSIONS for s in starts):
        raise InputError(f"{path} is not a list of versions as train.py writes it; restore it from a copy")
    return starts


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl; the last line of a running training may be incomplete and is left out."""
    path, rows = run / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def facts(result: Result, dataset: str, run: Path | None) -> Rows:
    """How a Result was made. run: the run folder of its weights, or None."""
    record, ranking = result.record, result.ranking
    split = f", split {record.split}" if record.split else ""
    size = f"{ranking.n_query:,} queries, {ranking.n_gallery:,} gallery images"
    rows = [("Dataset", f"{dataset or 'unknown'}{split}: {size}")]
    config = read_config(run) if run else None
    if config:
        rows += config_facts(config)
    if run:
        rows += start_facts(read_versions(run)) + training_time(run, config)
    rows += [("Features", extraction(record)), ("Scored in", f"{result.seconds:.3g} s")]
    rows += [("Dataset fingerprint", record.fingerprint or "")]
    rows += [("Weights SHA-256", record.weights or "")]
    return [row for row in rows if row[1]] + expected(result, dataset, config)


def config_facts(config: Config) -> Rows:
    changed = config.changes(profile(config.profile, config.model))
    own_rows = ("dataset_type", "seed")
    words = in_words({k: v for k, v in changed.items() if k not in own_rows})
    return [
        ("Model", f"{config.model}, {config.backbone}, images {config.h}x{config.w}"),
        ("Configuration", f"profile {config.profile}" + (f" with {words}" if words else "")),
        ("Seed", str(config.seed)),
    ]


def start_facts(starts: list[dict[str, Any]]) -> Rows:
    if not starts:
        return []
    first = starts[0]
    packages = {"python": first["python"], **first["packages"]}
    return [
        ("To repeat it", shell_line(*first["command"])),
        ("Commit", first["commit"] or "outside a checkout"),
        ("Versions", ", ".join(f"{k} {v}" for k, v in packages.items())),
        ("Hardware", f"{first['machine']}, {first['cuda'] or 'no GPU'}"),
        ("Started", ", ".join(start["time"] for start in starts)),
    ]


def shell_line(program: str, *arguments: str) -> str:
    """
    >>> shell_line("train.py", "--h", "384"), shell_line("__main__.py", "train"), shell_line("reid", "train")
    ('python train.py --h 384', 'python -m reid train', 'reid train')
    """
    start = ["python", program] if program.endswith(".py") else [program]
    if program == "__main__.py":
        start = ["python", "-m", "reid"]
    return shlex.join([*start, *arguments])


def training_time(run: Path, config: Config | None) -> Rows:
    rows = read_metrics(run)
    rates = [row["images_per_second"] for row in rows if row.get("images_per_second")]
    if not rates or config is None:
        return []
    steps = max(row["step"] for row in rows)
    time = duration(steps * config.batch_size / rates[-1])
    return [("Training", f"{steps:,} steps at {rates[-1]:,.0f} images/s: {time}")]


def extraction(record: Record) -> str:
    """For example '384x128, bf16, with mirror images'; "" if nothing is known."""
    words = [f"{record.h}x{record.w}" if record.h else "", record.precision or ""]
    if record.flip is not None:
        words.append("with mirror images" if record.flip else "without mirror images")
    if record.covered:
        words.append(f"band {record.covered} of 6 of each query image covered")
    return ", ".join(filter(None, words))


def expected(result: Result, dataset: str, config: Config | None) -> Rows:
    """The published scores of this model on this dataset next to those of the Result."""
    rank1 = result.cmc[0]
    model = config.model if config else "these features"
    if config and dataset not in config.dataset_type:
        trained = " ".join(config.dataset_type)
        return [("Expected", f"no comparison: trained on {trained}, scored on {dataset}")]
    if result.scoring != USUAL or result.record.covered:
        return [("Expected", "no comparison: the published scores are for the default scoring")]
    got = f"mAP {result.mean_ap:.1%}, Rank-1 {rank1:.1%}"
    known = published(model, dataset)
    if not known:
        where = dataset or "this dataset"
        return [("Expected", f"nothing is published for {model} on {where}; measured {got}")]
    rows = []
    for p in known:
        points = f"{100 * (result.mean_ap - p.map):+.1f} and {100 * (rank1 - p.rank1):+.1f} points"
        scores = f"mAP {p.map:.1%}, Rank-1 {p.rank1:.1%}"
        rows.append((f"Expected ({p.source})", f"{scores} ({p.setting}); measured {got}: {points}"))
    return rows


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(132), duration(7380)
    ('42 s', '2 min 12 s', '2 h 3 min')
    """
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60} min"
