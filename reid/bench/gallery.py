"""A gallery of random entries: searched with one query and with many, and one entry added.

Milvus Lite and FAISS (a flat index) have the same entries, where they are installed.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from reid.bench.measure import Measured, side_by_side, table
from reid.errors import CheckFailed
from reid.gallery.hdf5 import Gallery
from reid.gallery.milvus import Milvus
from reid.gallery.store import Entries, Fingerprint

TOP = 10
Search = Callable[[np.ndarray], list[list[str]]]


def run(a) -> Iterator[str]:
    rng = np.random.default_rng(0)
    mark = Fingerprint("random", "384x128", True)

    def entries(count: int, first: int = 0) -> Entries:
        features = rng.standard_normal((count, a.width), dtype=np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        names = [name_of(i) for i in range(first, first + count)]
        return Entries(features, names, np.arange(count), np.zeros(count, np.int64))

    with tempfile.TemporaryDirectory() as folder:
        content = entries(a.size)
        queries = content.features[: a.queries].copy()
        gallery = Gallery.create(Path(folder) / "gallery.h5", mark, content, a.dtype)
        other = others(folder, mark, content)
        del content
        numbers = iter(range(a.size, a.size + a.repeat))
        one, many = "search, 1 query", f"search, {len(queries)} queries"
        forms: dict[str, Callable[[], Any]] = {
            one: lambda: gallery.search(queries[:1], TOP),
            many: lambda: gallery.search(queries, TOP),
            "add one entry": lambda: gallery.add(mark, entries(1, next(numbers))),
        }
        for name, search in other.items():
            forms[f"{name}, 1 query"] = partial(search, queries[:1])
            forms[f"{name}, {len(queries)} queries"] = partial(search, queries)
        rows = side_by_side(forms, a.repeat)
        size = gallery.path.stat().st_size
    check_answers(rows[one], rows[many])
    title = f"gallery of {a.size:,} x {a.width} {a.dtype}, file {size / 2**20:,.0f} MiB"
    yield table(title, rows, one)
    exact = [answers.names for answers in rows[many].result]
    for name in other:
        found = [rows[f"{name}, {len(queries)} queries"].result]
        share = np.mean([len({*a} & {*b}) / len(a) for a, b in zip(exact, *found)])
        yield f"recall@{TOP} of {name} against the file: {share:.4f}"


def others(folder: str, mark: Fingerprint, content: Entries) -> dict[str, Search]:
    """Functions from queries (Q, F) to names, for the stores that are installed."""
    found: dict[str, Search] = {}
    if find_spec("pymilvus") and find_spec("milvus_lite"):
        milvus = Milvus.create(f"{folder}/gallery.db", "bench", mark, content)
        found["Milvus Lite"] = lambda q: [answers.names for answers in milvus.search(q, TOP)]
    if find_spec("faiss"):
        import faiss

        index = faiss.IndexFlatIP(content.features.shape[1])
        index.add(content.features)
        found["FAISS flat"] = lambda q: [[name_of(i) for i in row] for row in index.search(q, TOP)[1]]
    return found


def name_of(number: int) -> str:
    return f"{number:09d}.jpg"


def check_answers(one: Measured, many: Measured) -> None:
    """Checks that every query, which is an entry, finds itself, and that one query alone gives the same."""
    found = [answers.names[0] for answers in many.result]
    if found != [name_of(i) for i in range(len(found))]:
        raise CheckFailed("a query that is an entry of the gallery does not find itself first")
    if one.result[0].names != many.result[0].names:
        raise CheckFailed("one query alone gives other answers than in a batch")
