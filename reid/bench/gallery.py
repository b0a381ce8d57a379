"""A gallery searched: time and peak memory of one query and of many, and of adding a single entry."""

import tempfile
from pathlib import Path

import numpy as np

from reid.bench.measure import side_by_side, table
from reid.gallery.hdf5 import Entries, Fingerprint, Gallery


def add_arguments(parser) -> None:
    for name, default in {"size": 1_000_000, "width": 256, "queries": 100, "repeat": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="default float32")


def main(arguments) -> int:
    a = arguments
    rng = np.random.default_rng(0)
    mark = Fingerprint("random", "384x128", True)

    def random(count: int, first: int) -> Entries:
        features = rng.standard_normal((count, a.width), dtype=np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        names = [f"{i:09d}.jpg" for i in range(first, first + count)]
        return Entries(features, names, np.arange(count), np.zeros(count, np.int64))

    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery.create(Path(folder) / "gallery.h5", mark, random(a.size, 0), a.dtype)
        queries, numbers = random(a.queries, 0).features, iter(range(a.size, a.size + a.repeat))
        forms = {
            "search, 1 query": lambda: gallery.search(queries[:1], 10),
            f"search, {a.queries} queries": lambda: gallery.search(queries, 10),
            "add one entry": lambda: gallery.add(mark, random(1, next(numbers))),
        }
        rows = side_by_side(forms, a.repeat)
        size = gallery.path.stat().st_size
    title = f"gallery of {a.size:,} x {a.width} {a.dtype}, file {size / 2**20:,.0f} MiB"
    print(table(title, rows, next(iter(forms))))
    return 0
