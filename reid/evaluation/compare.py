"""Whether two results on the same queries differ by more than chance."""

import csv
from pathlib import Path

import numpy as np

from reid.errors import InputError, MissingInput
from reid.evaluation.open_set import CONFIDENCE, mean_interval
from reid.evaluation.record import read_record
from reid.evaluation.results import QUERY_COLUMNS

FLIPS, SEED = 10_000, 1501
MEASURES = ("mAP", "Rank-1", "mINP")


def read_queries(path: Path) -> tuple[dict[str, tuple[int, np.ndarray]], str | None, str | None]:
    """({name: (pid, (AP, Rank-1, INP))} of the queries with a match, the AP convention, the dataset's fingerprint);
    the last two None where unknown."""
    path = path / "queries.csv" if path.is_dir() else path
    if not path.is_file():
        raise MissingInput(f"{path} is not there; evaluate.py writes it beside result.json")
    queries = {}
    with open(path, newline="", errors="replace") as f:
        rows = csv.DictReader(f)
        if tuple(rows.fieldnames or ()) != QUERY_COLUMNS:
            raise InputError(
                f"{path} is no queries.csv of an evaluation: its first line is not {','.join(QUERY_COLUMNS)}"
            )
        for row in rows:
            try:
                if int(row["matches"]):
                    values = [float(row["ap"]), float(row["first_match"]) == 1, float(row["inp"])]
                    queries[row["name"]] = (int(row["pid"]), np.array(values))
            except (TypeError, ValueError) as e:
                raise InputError(f"{path}, line {rows.line_num}: {e}; was the file cut short? Evaluate again") from e
    if not queries:
        raise InputError(f"{path} has no query with a match")
    result = path.with_name("result.json")
    if not result.is_file():
        return queries, None, None
    record = read_record(result)
    return queries, record.scoring.ap, record.fingerprint


def comparison(a, b, names) -> str:
    """The table of both results, as printed."""
    (first, first_ap, first_data), (second, second_ap, second_data) = a, b
    if first_data != second_data and None not in (first_data, second_data):
        raise InputError(f"{names[0]} and {names[1]} are of two datasets, or of one that changed; compare results of "
                         "one test set")  # fmt: skip
    if first_ap != second_ap and None not in (first_ap, second_ap):
        raise InputError(f"{names[0]} has --ap {first_ap}, {names[1]} --ap {second_ap}; evaluate both alike")
    shared = [name for name in first if name in second]
    if not shared:
        raise InputError(f"{names[0]} and {names[1]} have no query name in common; compare results of one test set")
    for name in shared:
        if first[name][0] != second[name][0]:
            raise InputError(
                f"query {name} is pid {first[name][0]} in {names[0]} and {second[name][0]} in {names[1]}; "
                "compare results of one test set"
            )
    pids = np.array([first[name][0] for name in shared])
    values = np.array([[side[name][1] for name in shared] for side in (first, second)])  # (2, Q, measures)
    left_out = max(len(first), len(second)) - len(shared)
    lines = [
        f"{len(shared)} queries of {len(np.unique(pids))} identities in both"
        + (f", {left_out} in one only left out" if left_out else ""),
        f"{'':<8}{'A':>8}{'B':>8}{'B - A':>9}  {CONFIDENCE:.0%} interval        p",
    ]
    for i, name in enumerate(MEASURES):
        difference = values[1, :, i] - values[0, :, i]
        low, high = mean_interval(difference, pids)
        p = flip_test(difference, pids)
        lines.append(
            f"{name:<8}{values[0, :, i].mean():>8.2%}{values[1, :, i].mean():>8.2%}{difference.mean():>+9.2%}"
            f"  [{low:+.2%}, {high:+.2%}]  {p:.4f}" + ("  significant at 0.05" if p < 0.05 else "")
        )
    return "\n".join([*lines, f"p: paired sign-flip test over identities, {FLIPS} flips, two-sided"])


def flip_test(difference: np.ndarray, pids: np.ndarray) -> float:
    """Chance of a mean at least this far from 0 were A and B exchangeable: all queries of an identity flip together."""
    _, group = np.unique(pids, return_inverse=True)
    sums = np.bincount(group, difference)
    signs = np.random.default_rng(SEED).choice([-1.0, 1.0], (FLIPS, len(sums)))
    as_far = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    return float((1 + as_far.sum()) / (1 + FLIPS))
