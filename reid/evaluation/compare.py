"""Whether two results on the same queries differ by more than chance."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reid.errors import InputError, MissingInput
from reid.evaluation.open_set import CONFIDENCE, mean_interval
from reid.evaluation.record import Record, read_record
from reid.evaluation.results import QUERY_COLUMNS

FLIPS, SEED = 10_000, 1501
MEASURES = ("mAP", "Rank-1", "mINP")


@dataclass(frozen=True)
class QueryScores:
    """The queries of a result that have a match: {name: (pid, (AP, Rank-1, INP))}. record: None without result.json."""

    path: Path
    queries: dict[str, tuple[int, np.ndarray]]
    record: Record | None


def read_queries(path: Path) -> QueryScores:
    """The scores in an evaluation's folder, or in its queries.csv. Raises MissingInput, InputError."""
    source = path / "queries.csv" if path.is_dir() else path
    if not source.is_file():
        raise MissingInput(f"{source} does not exist; evaluate.py writes it beside result.json")
    queries = {}
    with open(source, newline="", encoding="utf-8", errors="replace") as f:
        rows = csv.DictReader(f)
        if tuple(rows.fieldnames or ()) != QUERY_COLUMNS:
            columns = ",".join(QUERY_COLUMNS)
            raise InputError(f"{source} is not a queries.csv of an evaluation: its first line is not {columns}")
        for row in rows:
            try:
                if int(row["matches"]):
                    values = [float(row["ap"]), float(row["first_match"]) == 1, float(row["inp"])]
                    queries[row["name"]] = (int(row["pid"]), np.array(values))
            except (TypeError, ValueError) as e:
                raise InputError(f"{source}, line {rows.line_num}: {e}; was the file cut short? Evaluate again") from e
    if not queries:
        raise InputError(f"{source} has no query with a match")
    result = source.with_name("result.json")
    return QueryScores(path, queries, read_record(result) if result.is_file() else None)


def check_alike(a: QueryScores, b: QueryScores) -> None:
    """Raises InputError for results of different datasets or definitions of average precision."""
    if a.record is None or b.record is None:
        return
    known = {a.record.fingerprint, b.record.fingerprint} - {None}
    if len(known) > 1:
        raise InputError(
            f"{a.path} and {b.path} are of different datasets or splits, or the dataset changed; "
            "compare results of one test set"
        )
    ours, theirs = (r.scoring.ap if r.scoring else None for r in (a.record, b.record))
    if None not in (ours, theirs) and ours != theirs:
        raise InputError(f"{a.path} has --ap {ours}, {b.path} --ap {theirs}; evaluate both with the same --ap")


def comparison(a: QueryScores, b: QueryScores) -> str:
    """The table of both results, as printed. Raises InputError for results that cannot be compared."""
    check_alike(a, b)
    shared = [name for name in a.queries if name in b.queries]
    if not shared:
        raise InputError(f"{a.path} and {b.path} have no query name in common; compare results of one test set")
    for name in shared:
        ours, theirs = a.queries[name][0], b.queries[name][0]
        if ours != theirs:
            raise InputError(
                f"query {name} is pid {ours} in {a.path} and {theirs} in {b.path}; compare results of one test set"
            )
    pids = np.array([a.queries[name][0] for name in shared])
    values = np.array([[side.queries[name][1] for name in shared] for side in (a, b)])  # (2, Q, measures)
    left_out = max(len(a.queries), len(b.queries)) - len(shared)
    only = f", {left_out} found in only one left out" if left_out else ""
    lines = [
        f"{len(shared)} queries of {len(np.unique(pids))} identities in both{only}",
        f"{'':<8}{'A':>8}{'B':>8}{'B - A':>9}  {CONFIDENCE:.0%} interval        p",
    ]
    for name, ours, theirs in zip(MEASURES, values[0].T, values[1].T):
        difference = theirs - ours
        low, high = mean_interval(difference, pids)
        p = flip_test(difference, pids)
        means = f"{ours.mean():>8.2%}{theirs.mean():>8.2%}{difference.mean():>+9.2%}"
        verdict = "  significant at 0.05" if p < 0.05 else ""
        lines.append(f"{name:<8}{means}  [{low:+.2%}, {high:+.2%}]  {p:.4f}{verdict}")
    lines.append(f"p: paired sign-flip test over identities, {FLIPS} flips, two-sided")
    return "\n".join(lines)


def flip_test(difference: np.ndarray, pids: np.ndarray) -> float:
    """Probability of a mean at least this far from 0 if A and B are exchangeable.

    The queries of one identity change their sign together.
    """
    _, group = np.unique(pids, return_inverse=True)
    sums = np.bincount(group, difference)
    signs = np.random.default_rng(SEED).choice([-1.0, 1.0], (FLIPS, len(sums)))
    as_far = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    return float((1 + as_far.sum()) / (1 + FLIPS))
