"""Results as one table, in Markdown and CSV: means over the seeds of runs, with published numbers beside them.

Evaluations of files that are in no run, of weights or of features, have rows of their own. Runs that were scored with
covered bands have a second table: the mAP that each loses if a band is covered.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reid.config import Config, in_words
from reid.errors import InputError, MissingInput
from reid.evaluation.record import USUAL, Record, read_record, words
from reid.files import write_csv
from reid.models.tensors import load_tensors
from reid.profiles import profile
from reid.report.published import published
from reid.report.sources import run_of
from reid.runs import is_finished, read_config

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # in a state, but not parameters
SCORES = ("mAP", "Rank-1", "mINP")
COLUMNS = (
    *("model", "changed", "test", "seeds", "width", "parameters", "images seen"),
    *SCORES,
    *("published mAP/Rank-1", "published setting"),
)
BANDS = tuple(map(str, range(1, 7)))
COVERED_COLUMNS = ("model", "changed", "test", "seeds", "whole", *BANDS, "mean loss")
METHOD = ("stripes", "relation", "pooling", "contrast", "ce_on")  # with another value it is not the published method
Line = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """One result. width: length of a descriptor. scores: SCORES in 0..1.

    config, parameters and images_seen are None for a file that is in no run; its `folder` is the evaluation's.
    """

    folder: Path
    record: Record
    width: int
    scores: tuple[float, float, float]
    config: Config | None = None
    parameters: int | None = None
    images_seen: int | None = None

    @property
    def model(self) -> Config | str:
        """The configuration without its seed and without fields that do not affect results; of a file its digest."""
        if self.config is None:
            return self.record.weights or self.record.features or str(self.folder)
        usual = Config()
        unimportant = {f: getattr(usual, f) for f in usual.to_json()["run"] if f != "profile"}
        return replace(self.config, **unimportant, seed=0)

    @property
    def seed(self) -> int:
        return self.config.seed if self.config else 0

    @property
    def test(self) -> Record:
        """The record without weights and features: rows with equal tests can be compared."""
        return replace(self.record, weights=None, features=None)


def read_runs(paths: Iterable[Path]) -> tuple[list[Scored], list[str]]:
    """(a row for each result under the paths, why other runs and results are left out).

    A second run of the same configuration and seed is left out: it is not another seed. Raises MissingInput where
    there is neither a run nor a result.
    """
    rows: dict[tuple[Config | str, int, Record], Scored] = {}
    left_out = []
    for path in paths:
        folders = sorted({p.parent for p in path.rglob("config.json")}) if path.is_dir() else []
        alone = [p for p in sorted(path.rglob("result.json")) if not run_of(p.parent)] if path.is_dir() else []
        if not folders and not alone:
            raise MissingInput(
                f"{path} has no run (a folder with config.json) and no result of a file; give a run folder or one "
                "above it"
            )
        for found, problems in (*map(read_run, folders), read_results(alone)):
            left_out += problems
            for row in found:
                kept = rows.setdefault((row.model, row.seed, row.test), row)
                if kept.folder.resolve() != row.folder.resolve():
                    same = f"same {'configuration and seed' if row.config else 'file and test'} as {kept.folder}"
                    left_out.append(f"{row.folder}, {row.record.dataset} ({same})")
    return list(rows.values()), left_out


def read_results(results: Iterable[Path], **run: Any) -> tuple[list[Scored], list[str]]:
    """(a row for each result, why others are left out). run: fields of the rows; of files in no run, none."""
    rows, problems = [], []
    for path in results:
        try:
            rows.append(Scored(**{"folder": path.parent} | run | read_result(path)))
        except InputError as e:
            problems.append(str(e))
    return rows, problems


def read_run(folder: Path) -> tuple[list[Scored], list[str]]:
    """(a row for each result, why others are left out) of one run folder."""
    results = sorted(folder.glob("eval-*/result.json"))
    if not is_finished(folder):
        return [], [f"{folder} (unfinished: python train.py --resume {folder})"]
    if not results:
        return [], [f"{folder} (not scored: python evaluate.py --weights {folder / 'weights.pth'})"]
    try:
        run = read_training(folder)
    except (InputError, ValueError, KeyError, TypeError, OSError) as e:
        return [], [f"{folder}: its files cannot be used ({type(e).__name__}: {e}); leave the folder out"]
    return read_results(results, folder=folder, **run)


def read_training(folder: Path) -> dict[str, Any]:
    """config, parameters and images_seen of a Scored."""
    config = read_config(folder)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = max((json.loads(line)["step"] for line in lines), default=0)
    state = load_tensors(folder / "weights.pth")["state"]
    parameters = sum(v.numel() for k, v in state.items() if not k.endswith(STATISTICS))
    return {"config": config, "parameters": parameters, "images_seen": steps * config.batch_size}


def read_result(path: Path) -> dict[str, Any]:
    """record, width and scores of a Scored. Raises InputError."""
    record = read_record(path)
    try:
        r = json.loads(path.read_text(encoding="utf-8"))
        scores = (float(r["map"]), float(r["cmc"][0]), float(r["minp"]))
        return {"record": record, "width": int(r["width"]), "scores": scores}
    except (ValueError, KeyError, IndexError, TypeError) as e:
        raise InputError(f"{path} is damaged ({type(e).__name__}: {e}); evaluate again") from e


def summary(rows: list[Scored]) -> list[Line]:
    """A line for each configuration and test, best mAP first: COLUMNS, scores as (mean, deviation or None)."""
    groups: dict[tuple[Config | str, Record], list[Scored]] = {}
    for row in rows:
        groups.setdefault((row.model, row.test), []).append(row)
    names, labels, lines = names_of(rows), labels_of(rows), []
    for (model, test), found in groups.items():
        known = published_for(found[0])
        scores = zip(*(row.scores for row in found))
        line = {
            **names[model],
            "test": labels[model, test],
            "seeds": len(found),
            "width": found[0].width,
            "parameters": found[0].parameters,
            "images seen": found[0].images_seen,
            **dict(zip(SCORES, map(mean_and_deviation, scores))),
            "published mAP/Rank-1": "; ".join(f"{100 * p.map:.1f}/{100 * p.rank1:.1f}" for p in known),
            "published setting": "; ".join(f"{p.source}: {p.setting}" for p in known),
        }
        lines.append(line)
    return sorted(lines, key=lambda line: (line["test"], -line["mAP"][0]))


def covered(rows: list[Scored]) -> list[Line]:
    """A line for each configuration and test that was scored with covered bands: COVERED_COLUMNS.

    mAP is (mean over seeds, deviation or None), None where a band is missing. mean loss: mAP of the whole images minus
    the mean of all six.
    """
    groups: dict[tuple[Config | str, Record], dict[str, list[Scored]]] = {}
    for row in rows:
        whole = replace(row, record=replace(row.record, covered=0))
        tests = groups.setdefault((row.model, whole.test), {})
        tests.setdefault(str(row.record.covered) if row.record.covered else "whole", []).append(whole)
    groups = {key: tests for key, tests in groups.items() if tests.keys() - {"whole"}}
    shown = [row for tests in groups.values() for found in tests.values() for row in found]
    names, labels, lines = names_of(shown), labels_of(shown), []
    for (model, test), tests in groups.items():
        scores = {band: mean_and_deviation([row.scores[0] for row in found]) for band, found in tests.items()}
        line = dict.fromkeys(COVERED_COLUMNS) | scores
        line |= {**names[model], "test": labels[model, test]}
        line["seeds"] = max(map(len, tests.values()))
        if len(scores) == 7:
            line["mean loss"] = (scores["whole"][0] - sum(scores[band][0] for band in BANDS) / 6, None)
        lines.append(line)
    return sorted(lines, key=lambda line: (line["test"], -(line["whole"] or (0,))[0]))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def as_trained(row: Scored) -> Record:
    """The settings that a row's label omits: those of the training, and default scoring."""
    c, precision = row.config or row.record, row.record.precision
    split = row.config.split if row.config else 0
    return Record(split=split, h=c.h, w=c.w, flip=True, precision=precision, covered=0, scoring=USUAL)


def names_of(rows: list[Scored]) -> dict[Config | str, dict[str, str]]:
    """The cells `model` and `changed` of each Scored.model. A file has the name of its evaluation's folder."""
    changed = changed_fields({row.model for row in rows if isinstance(row.model, Config)})
    names = {config: {"model": config.model, "changed": text} for config, text in changed.items()}
    files: dict[str, list[str]] = {}
    for row in rows:
        if isinstance(row.model, str):
            files.setdefault(row.model, []).append(row.folder.resolve().name.removeprefix("eval-"))
    return names | {model: {"model": min(found, key=len), "changed": ""} for model, found in files.items()}


def labels_of(rows: list[Scored]) -> dict[tuple[Config | str, Record], str]:
    """Each test by (configuration, test): the dataset, and what differs from the training's settings.

    The precision is named where the rows differ in it, a digest where two tests would have one label.
    """
    several = len({row.record.precision for row in rows} - {None}) > 1
    labels: dict[tuple[Config | str, Record], str] = {}
    images: dict[str, set] = {}
    for row in rows:
        test = row.test
        parts = [test.dataset or "unknown", *words(test, as_trained(row))]
        parts += [f"precision-{test.precision}"] if several and test.precision else []
        label = labels[row.model, test] = " ".join(parts)
        images.setdefault(label, set()).add((test.fingerprint, test.content))
    return {key: f"{label} {key[1].digest[:8]}" if len(images[label]) > 1 else label for key, label in labels.items()}


def published_for(row: Scored) -> list:
    """Published numbers of the row's method and test; none for a variant, or with other settings."""
    c = row.config
    if c is None:
        return []
    changes = c.changes(profile(c.profile, c.model))
    if any(f in changes for f in METHOD) or words(row.record, as_trained(row)):
        return []
    return published(c.model, row.record.dataset or "")


def changed_fields(configs: set[Config]) -> dict[Config, str]:
    """The fields that differ from profile and recipe, except those common to all; the profile's name if none differ."""
    changes = {c: c.changes(profile(c.profile, c.model)) for c in configs}
    common = set.intersection(*(set(c.items()) for c in changes.values())) if len(changes) > 1 else set()
    own = {c: {k: v for k, v in found.items() if (k, v) not in common} for c, found in changes.items()}
    return {c: in_words(found) or c.profile for c, found in own.items()}


def markdown(lines: list[Line], columns: Sequence[str]) -> str:
    """Scores in percent, mean ± standard deviation over seeds; empty columns are left out."""
    rows = [{c: as_cell(line[c]) for c in columns} for line in lines]
    kept = [c for c in columns if any(row[c] for row in rows)]
    table = [kept, *([row[c] for c in kept] for row in rows)]
    head, *body = ("| " + " | ".join(cells) + " |" for cells in table)
    return "\n".join([head, "|---" * len(kept) + "|", *body])


def as_cell(value: Any) -> str:
    if isinstance(value, tuple):
        mean, deviation = value
        return f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def check_csv(path: Path) -> None:
    if path.suffix != ".csv" or path.is_dir():
        raise InputError(f"--csv {path}: expected a file name ending in .csv")


def write_table(lines: list[Line], path: Path) -> None:
    """Scores as fractions, their standard deviation in a column of its own. Raises InputError."""
    check_csv(path)
    names = [name for c in COLUMNS for name in ((c, f"{c} std") if c in SCORES else (c,))]
    rows = ([v for c in COLUMNS for v in (line[c] if c in SCORES else (line[c],))] for line in lines)
    write_csv(path, names, rows)
