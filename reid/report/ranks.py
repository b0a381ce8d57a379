"""Rank lists as files: ranks.csv with a line for each answer, ranks.json with an object for each query."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reid.evaluation.features import Part
from reid.evaluation.results import Result
from reid.files import atomic_file, write_csv, writing
from reid.report.lists import JUNK, KINDS, Pairs

ASKED = ("query", "identity", "camera")  # keys of a query and of an answer, in the order of COLUMNS
FOUND = ("rank", "gallery", "identity", "camera", "distance", "answer")
COLUMNS = (
    *("query", "query_identity", "query_camera"),
    *("rank", "gallery", "gallery_identity", "gallery_camera", "distance", "answer"),
)


def write_ranks(folder: Path, result: Result, answers: Pairs) -> None:
    """Writes both files into `folder`. answers: of lists.rank_lists. Names and labels are the user's, where given."""
    queries = [*query_lists(result, answers)]
    rows = [[*(q[k] for k in ASKED), *(a[k] for k in FOUND)] for q in queries for a in q["answers"]]
    write_csv(folder / "ranks.csv", COLUMNS, rows)
    path = folder / "ranks.json"
    with writing(path), atomic_file(path) as temporary:
        lines = ",\n".join(json.dumps(query, ensure_ascii=False) for query in queries)
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def query_lists(result: Result, answers: Pairs) -> Iterator[dict[str, Any]]:
    """An object for each query. Junk has no rank; of a query without a match, ap is None."""
    features = result.features
    ends = np.searchsorted(answers.query, np.arange(len(features.query)), "right").tolist()
    gallery, kinds = answers.gallery.tolist(), answers.kind.tolist()
    distances = [float(f"{d:.6g}") for d in answers.distance.tolist()]
    start = 0
    for i, (ap, end) in enumerate(zip(result.ap.tolist(), ends)):
        rank, found = 0, []
        for n in range(start, end):
            rank += kinds[n] != JUNK
            found.append(
                {
                    "rank": None if kinds[n] == JUNK else rank,
                    "gallery": named(result, features.gallery, gallery[n]),
                    **labelled(result, features.gallery, gallery[n]),
                    "distance": distances[n],
                    "answer": KINDS[kinds[n]],
                }
            )
        start = end
        query = {"query": named(result, features.query, i), **labelled(result, features.query, i)}
        yield query | {"ap": None if np.isnan(ap) else round(ap, 6), "answers": found}


def named(result: Result, side: Part, row: int) -> str:
    return result.features.labels.source(str(side.names[row]))


def labelled(result: Result, side: Part, row: int) -> dict[str, str | None]:
    """Identity and camera of an image, as texts."""
    labels = result.features.labels
    camera = None if side.camids is None else labels.camera(int(side.camids[row]))
    return {"identity": labels.identity(int(side.pids[row])), "camera": camera}
