"""How a result was made: what a reader needs to repeat it, and what it was expected to be."""

import json
import shlex
from pathlib import Path
from typing import Any

from reid.errors import InputError
from reid.evaluation.open_set import CONFIDENCE
from reid.profiles import PROFILES, RECIPES, profile
from reid.report.published import published


def read_run(run: Path) -> tuple[dict[str, Any], list[dict]]:
    """(config.json with its rooms joined, versions.json) of a run folder. Raises InputError for damaged files."""
    found: list[Any] = []
    for name, empty in (("config.json", {}), ("versions.json", [])):
        try:
            found.append(json.loads((run / name).read_text()))
        except FileNotFoundError:
            found.append(empty)
        except ValueError as e:
            raise InputError(f"{run / name} is not valid JSON ({e}); was it cut short? Put it back from a copy") from e
    rooms, versions = found
    if not isinstance(rooms, dict) or not all(isinstance(room, dict) for room in rooms.values()):
        raise InputError(f"{run / 'config.json'} is no configuration, an object of rooms; put it back from a copy")
    known = {"time", "command", "commit", "python", "packages", "machine", "cuda"}
    if not isinstance(versions, list) or not all(isinstance(v, dict) and known <= v.keys() for v in versions):
        raise InputError(f"{run / 'versions.json'} is not what train.py writes; put it back from a copy")
    return {k: v for room in rooms.values() for k, v in room.items()}, versions


def changes(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that change numbers and differ from the run's profile and recipe."""
    name, model = config.get("profile", "paper"), config.get("model", "rrid")
    known = name in PROFILES and model in RECIPES
    rooms = (profile(name, model) if known else profile("paper")).to_json()
    usual = {k: v for room, values in rooms.items() if room != "run" for k, v in values.items()}
    return {k: v for k, v in config.items() if k not in rooms["run"] and usual.get(k) != v and k != "dataset_type"}


def facts(result: dict[str, Any], attrs: dict[str, Any], dataset: str, run: Path | None) -> list[tuple[str, str]]:
    """(what, value) rows about an evaluation: its result.json, its features' attributes, the dataset's name, and the
    run folder of its weights, if they are in one."""
    rows = [
        ("Dataset", f"{dataset or 'unknown'}: {result['n_query']:,} queries, {result['n_gallery']:,} gallery images")
    ]
    config, versions = read_run(run) if run else ({}, [])
    model = config.get("model", "rrid") if config else ""
    if config:
        changed = ", ".join(f"{k} {shown(v)}" for k, v in changes(config).items())
        rows += [
            ("Model", f"{model}, {config.get('backbone', '')}, images {config.get('h')}x{config.get('w')}"),
            ("Configuration", f"profile {config.get('profile', 'paper')}" + (f" with {changed}" if changed else "")),
            ("Seed", str(config.get("seed", ""))),
        ]
    if versions:
        first = versions[0]
        rows += [
            ("To repeat it", " ".join(["python", *map(shlex.quote, first["command"])])),
            ("Commit", first["commit"] or "outside a checkout"),
            ("Versions", ", ".join(f"{k} {v}" for k, v in {"python": first["python"], **first["packages"]}.items())),
            ("Hardware", first["machine"] + (f", {first['cuda']}" if first["cuda"] else ", no GPU")),
        ]
        rows += [("Started", ", ".join(start["time"] for start in versions))]
    if run:
        rows += training_time(run, config)
    rows.append(("Scored in", f"{result['time']:.3g} s"))
    for name, key in (("Dataset fingerprint", "dataset"), ("Weights SHA-256", "weights")):
        if attrs.get(key):
            rows.append((name, str(attrs[key])))
    return rows + expected(result, model, dataset, config.get("dataset_type", []))


def expected(result: dict[str, Any], model: str, dataset: str, trained: list[str]) -> list[tuple[str, str]]:
    """What is published for this model and dataset beside what came out, in percent."""
    if model and dataset not in trained:
        return [("Expected", f"nothing to stand beside: trained on {' '.join(trained)}, scored on {dataset}")]
    known = published(model, dataset)
    got = f"mAP {result['map']:.1%}, Rank-1 {result['cmc'][0]:.1%}"
    if not known:
        return [
            (
                "Expected",
                f"nothing is published for {model or 'these features'} on {dataset or 'this dataset'}; got {got}",
            )
        ]
    return [
        (f"Expected ({p.source})", f"mAP {p.map:.1%}, Rank-1 {p.rank1:.1%} ({p.setting}); got {got}: "
         f"{100 * (result['map'] - p.map):+.1f} and {100 * (result['cmc'][0] - p.rank1):+.1f} points")
        for p in known
    ]  # fmt: skip


def training_time(run: Path, config: dict[str, Any]) -> list[tuple[str, str]]:
    values = read_metrics(run)
    rate = next((row["images_per_second"] for row in reversed(values) if "images_per_second" in row), None)
    steps = max((row["step"] for row in values), default=0)
    if not rate or not config.get("batch_size"):
        return []
    return [("Training", f"{steps:,} steps at {rate:,.0f} images/s: {spoken(steps * config['batch_size'] / rate)}")]


def spoken(seconds: float) -> str:
    """
    >>> spoken(42), spoken(132), spoken(7380)
    ('42 s', '2 min 12 s', '2 h 3 min')
    """
    s = round(seconds)
    return f"{s} s" if s < 60 else f"{s // 60} min {s % 60} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60} min"


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The whole lines of metrics.jsonl; a run that is being written may end in a part of one."""
    path = run / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def with_interval(value: float, interval: list[float] | None) -> tuple[str, str]:
    """('77.2', '95 %: 71.7 to 82.7')."""
    sure = "" if interval is None else f"{CONFIDENCE:.0%}: {100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
    return f"{100 * value:.1f}", sure
