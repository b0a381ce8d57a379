"""python -m reid table: finished runs as one table, in Markdown and CSV, means over seeds, published numbers beside."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from reid.config import Config
from reid.errors import InputError, MissingInput
from reid.models.files import load_tensors
from reid.profiles import profile
from reid.report.published import published
from reid.runs import atomic_file, is_finished

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # in a state, yet no parameters
COLUMNS = ("model", "changed", "test", "seeds", "width", "parameters", "images seen", "mAP", "Rank-1", "mINP",
           "published mAP/Rank-1", "published setting")  # fmt: skip


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


def add_arguments(parser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="run folders, or folders of them (logs/market1501)")
    parser.add_argument("--csv", metavar="FILE", help="also as CSV, with full precision")


def main(arguments) -> int:
    rows, left_out = read_runs(Path(p) for p in arguments.paths)
    show(rows, left_out, arguments.csv)
    return 0


def show(rows: list[Scored], left_out: list[str], csv_file: str | None) -> None:
    lines = summary(rows)
    print(markdown(lines))
    for reason in left_out:
        print(f"not in the table: {reason}")
    if csv_file:
        write_csv(lines, Path(csv_file))


def read_runs(paths: Iterable[Path]) -> tuple[list[Scored], list[str]]:
    """(a row for each result.json of each run under the paths, why the other runs have none).

    Raises MissingInput where there is no run at all.
    """
    rows, left_out = [], []
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
                rows += read_results(folder, results)
    return rows, left_out


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
            scores = (r["map"], r["cmc"][0], r["minp"])
            rows.append(Scored(folder, config, test, width(path), parameters, steps * config.batch_size, scores))
        return rows
    except (ValueError, KeyError, IndexError, TypeError, OSError) as e:
        raise InputError(f"{folder}: its files cannot be used ({type(e).__name__}: {e}); evaluate it again, "
                         "or leave the folder out") from e  # fmt: skip


def width(result: Path) -> int | None:
    """Length of a descriptor, from the features file; None without one."""
    base = result.parent.with_name("_".join(result.parent.name.split("_")[:1]))
    for path in (result.parent / "features.h5", base / "features.h5"):
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
    changes = {config: config.changes(profile(config.profile, config.model)) for config, _ in groups}
    common = set.intersection(*(set(c.items()) for c in changes.values())) if len(changes) > 1 else set()
    lines = []
    for (config, test), found in groups.items():
        changed = {k: v for k, v in changes[config].items() if (k, v) not in common}
        is_original = not any(f in changes[config] for f in ("stripes", "relation", "pooling", "contrast", "ce_on"))
        known = published(config.model, test) if is_original else []
        scores = np.array([row.scores for row in found])
        values = [
            config.model,
            ", ".join(f"{k} {words(v)}" for k, v in changed.items()) or config.profile,
            test,
            len(found),
            found[0].width,
            found[0].parameters,
            found[0].images_seen,
            *((float(s.mean()), float(s.std(ddof=1)) if len(s) > 1 else None) for s in scores.T),
            "; ".join(f"{100 * p.map:.1f}/{100 * p.rank1:.1f}" for p in known),
            "; ".join(f"{p.source}: {p.setting}" for p in known),
        ]
        lines.append(dict(zip(COLUMNS, values, strict=True)))
    return sorted(lines, key=lambda line: (line["test"], -line["mAP"][0]))


def comparable(config: Config) -> Config:
    """The configuration without its seed and without what changes no number."""
    defaults = {f: getattr(Config(), f) for f, room in rooms().items() if room == "run" and f != "profile"}
    return replace(config, **defaults, seed=0)


def rooms() -> dict[str, str]:
    return {name: room for room, values in Config().to_json().items() for name in values}


def words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def markdown(lines: list[dict[str, Any]]) -> str:
    """Scores in percent, mean ± standard deviation over seeds; columns that are empty throughout are left out."""

    def cell(value: Any) -> str:
        if isinstance(value, tuple):
            mean, deviation = value
            return f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")
        return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    kept = [c for c in COLUMNS if any(cell(line[c]) for line in lines)]
    head = ["| " + " | ".join(kept) + " |", "|---" * len(kept) + "|"]
    return "\n".join(head + ["| " + " | ".join(cell(line[c]) for c in kept) + " |" for line in lines])


def write_csv(lines: list[dict[str, Any]], path: Path) -> None:
    """Scores as fractions, their standard deviation in a column of its own."""
    scores = ("mAP", "Rank-1", "mINP")
    names = [n for c in COLUMNS for n in ((c, f"{c} std") if c in scores else (c,))]
    with atomic_file(path) as temporary, open(temporary, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(names)
        for line in lines:
            cells = [v for c in COLUMNS for v in (line[c] if c in scores else (line[c],))]
            out.writerow(["" if v is None else v for v in cells])
