"""python -m reid table: finished runs as one table, in Markdown and CSV, means over seeds, published numbers beside;
under it what each loses when a band of the query images is covered, where evaluate.py --occlude was run."""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from reid.config import Config
from reid.errors import InputError, MissingInput
from reid.files import atomic_file, writing
from reid.models.tensors import load_tensors
from reid.profiles import profile
from reid.report.published import published
from reid.runs import is_finished

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # in a state, yet no parameters
COLUMNS = ("model", "changed", "test", "seeds", "width", "parameters", "images seen", "mAP", "Rank-1", "mINP",
           "published mAP/Rank-1", "published setting")  # fmt: skip
COVERED = re.compile(r"(.*)_occlude-([1-6])(.*)")  # a test of evaluate.py --occlude
COVERED_COLUMNS = ("model", "changed", "test", "seeds", "whole", *map(str, range(1, 7)), "mean loss")


@dataclass(frozen=True)
class Scored:
    """One result of one run. test: the evaluated dataset, with the settings that differ from the default."""

    folder: Path
    config: Config
    test: str
    width: int | None
    parameters: int
    images_seen: int
    scores: tuple[float, float, float]  # mAP, Rank-1, mINP in 0..1


def read_runs(paths: Iterable[Path]) -> tuple[list[Scored], list[str]]:
    """(a row for each result.json of each run under the paths, why the other runs have none). Of runs with the same
    configuration and seed the first counts: a second one is no other seed.

    Raises MissingInput where there is no run at all.
    """
    rows: dict[tuple[Config, int, str], Scored] = {}
    left_out = []
    for path in paths:
        folders = sorted({p.parent for p in path.rglob("config.json")}) if path.is_dir() else []
        if not folders:
            raise MissingInput(f"{path} holds no run (a folder with config.json); give a run folder or one above it")
        for folder in folders:
            results = sorted(folder.glob("eval-*/result.json"))
            if not is_finished(folder):
                left_out.append(f"{folder} (unfinished: python train.py --resume {folder})")
            elif not results:
                left_out.append(f"{folder} (not scored: python evaluate.py --weights {folder / 'weights.pth'})")
            else:
                try:
                    found = read_results(folder, results)
                except InputError as e:
                    left_out.append(str(e))
                    continue
                for row in found:
                    kept = rows.setdefault((comparable(row.config), row.config.seed, row.test), row)
                    if kept.folder.resolve() != folder.resolve():
                        left_out.append(f"{folder}, {row.test} (same configuration and seed as {kept.folder})")
    return list(rows.values()), left_out


def read_results(folder: Path, results: list[Path]) -> list[Scored]:
    try:
        config = Config.from_json(json.loads((folder / "config.json").read_text()), str(folder / "config.json"))
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        steps = max((json.loads(line)["step"] for line in lines), default=0)
        state = load_tensors(folder / "weights.pth")["state"]
        parameters = sum(v.numel() for k, v in state.items() if not k.endswith(STATISTICS))
        rows = []
        for path in results:
            r = json.loads(path.read_text())
            test = path.parent.name.removeprefix("eval-")
            scores = (float(r["map"]), float(r["cmc"][0]), float(r["minp"]))
            rows.append(Scored(folder, config, test, width(path), parameters, steps * config.batch_size, scores))
        return rows
    except (InputError, ValueError, KeyError, IndexError, TypeError, OSError) as e:
        raise InputError(f"{folder}: its files cannot be used ({type(e).__name__}: {e}); evaluate it again, "
                         "or leave the folder out") from e  # fmt: skip


def width(result: Path) -> int | None:
    """Length of a descriptor, from the features file; None without one."""
    parts = result.parent.name.split("_")  # eval-<dataset>_<settings>; a dataset's name may have more of them
    for count in range(len(parts), 0, -1):
        path = result.parent.with_name("_".join(parts[:count])) / "features.h5"
        if path.is_file():
            with h5py.File(path) as f:
                return int(f["features"].shape[1])
    return None


def summary(rows: list[Scored]) -> list[dict[str, Any]]:
    """A line for each configuration and test, best mAP first: COLUMNS, numbers as (mean, standard deviation or None).

    changed: what differs from profile and recipe, without what all rows have in common.
    """
    groups: dict[tuple[Config, str], list[Scored]] = {}
    for row in rows:
        groups.setdefault((comparable(row.config), row.test), []).append(row)
    names, lines = changed_fields({config for config, _ in groups}), []
    for (config, test), found in groups.items():
        changes = config.changes(profile(config.profile, config.model))
        is_original = not any(f in changes for f in ("stripes", "relation", "pooling", "contrast", "ce_on"))
        known = published(config.model, test) if is_original else []
        values = [
            config.model,
            names[config],
            test,
            len(found),
            found[0].width,
            found[0].parameters,
            found[0].images_seen,
            *map(mean_and_deviation, zip(*(row.scores for row in found))),
            "; ".join(f"{100 * p.map:.1f}/{100 * p.rank1:.1f}" for p in known),
            "; ".join(f"{p.source}: {p.setting}" for p in known),
        ]
        lines.append(dict(zip(COLUMNS, values, strict=True)))
    return sorted(lines, key=lambda line: (line["test"], -line["mAP"][0]))


def covered(rows: list[Scored]) -> list[dict[str, Any]]:
    """A line for each configuration and test that was scored with covered bands: COVERED_COLUMNS, mAP as (mean over
    seeds, standard deviation or None), None where a band is missing; mean loss: whole minus the mean of all six."""
    groups: dict[tuple[Config, str], dict[str, list[Scored]]] = {}
    for row in rows:
        base, band, rest = COVERED.fullmatch(row.test).groups() if COVERED.fullmatch(row.test) else (row.test, "", "")
        groups.setdefault((comparable(row.config), base + rest), {}).setdefault(band or "whole", []).append(row)
    groups = {key: tests for key, tests in groups.items() if tests.keys() - {"whole"}}
    names, lines = changed_fields({config for config, _ in groups}), []
    for (config, test), tests in groups.items():
        scores = {band: mean_and_deviation([row.scores[0] for row in found]) for band, found in tests.items()}
        line = dict.fromkeys(COVERED_COLUMNS) | {"model": config.model, "changed": names[config], "test": test} | scores
        if len(scores) == 7:
            line["mean loss"] = (scores["whole"][0] - sum(scores[str(k)][0] for k in range(1, 7)) / 6, None)
        lines.append(line | {"seeds": max(map(len, tests.values()))})
    return sorted(lines, key=lambda line: (line["test"], -(line["whole"] or (0,))[0]))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def changed_fields(configs: set[Config]) -> dict[Config, str]:
    """What differs from profile and recipe, without what all have in common; the profile's name when nothing does."""
    changes = {config: config.changes(profile(config.profile, config.model)) for config in configs}
    common = set.intersection(*(set(c.items()) for c in changes.values())) if len(changes) > 1 else set()
    return {
        config: ", ".join(f"{k} {words(v)}" for k, v in own.items() if (k, v) not in common) or config.profile
        for config, own in changes.items()
    }


def comparable(config: Config) -> Config:
    """The configuration without its seed and without what changes no number."""
    defaults = {f: getattr(Config(), f) for f, room in rooms().items() if room == "run" and f != "profile"}
    return replace(config, **defaults, seed=0)


def rooms() -> dict[str, str]:
    return {name: room for room, values in Config().to_json().items() for name in values}


def words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def markdown(lines: list[dict[str, Any]], columns: Sequence[str]) -> str:
    """Scores in percent, mean ± standard deviation over seeds; columns that are empty throughout are left out."""

    def cell(value: Any) -> str:
        if isinstance(value, tuple):
            mean, deviation = value
            return f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")
        return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    kept = [c for c in columns if any(cell(line[c]) for line in lines)]
    head = ["| " + " | ".join(kept) + " |", "|---" * len(kept) + "|"]
    return "\n".join(head + ["| " + " | ".join(cell(line[c]) for c in kept) + " |" for line in lines])


def check_csv(path: Path) -> None:
    if path.suffix != ".csv" or path.is_dir():
        raise InputError(f"--csv {path}: expected a file's name that ends in .csv")


def write_csv(lines: list[dict[str, Any]], path: Path) -> None:
    """Scores as fractions, their standard deviation in a column of its own. Raises InputError."""
    check_csv(path)
    scores = ("mAP", "Rank-1", "mINP")
    names = [n for c in COLUMNS for n in ((c, f"{c} std") if c in scores else (c,))]
    with writing(path), atomic_file(path) as temporary, open(temporary, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(names)
        for line in lines:
            cells = [v for c in COLUMNS for v in (line[c] if c in scores else (line[c],))]
            out.writerow(["" if v is None else v for v in cells])
