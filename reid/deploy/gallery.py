"""A gallery: one HDF5 file of descriptors that can be searched, and changed without ever being half changed.

features (M, F) float32 or float16 of unit length, names (paths relative to the gallery's folder, each once), pids and
camids (-1 where unknown). attrs: the fingerprint of what made the features (weights' SHA-256, input size, flip). A
change writes a whole new file beside the old one and puts it in its place, under a lock; a kill leaves one or the
other.
"""

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from reid.errors import InputError, MissingInput
from reid.evaluation.distances import CHUNK, UNIT_TOLERANCE, nearest, products
from reid.runs import atomic_file, locked

FORMAT = 1


class Fingerprint(NamedTuple):
    """What descriptors depend on; those of another fingerprint cannot be compared."""

    weights: str  # SHA-256 of the file
    size: str  # "384x128", height x width
    flip: bool


class Entries(NamedTuple):
    """Descriptors of M images: features (M, F), names, pids (M,), camids (M,)."""

    features: np.ndarray
    names: list[str]
    pids: np.ndarray
    camids: np.ndarray


class Answers(NamedTuple):
    """Of one query, nearest first: gallery rows, squared Euclidean distances (0 to 4), names, pids, camids."""

    rows: np.ndarray
    distances: np.ndarray
    names: list[str]
    pids: np.ndarray
    camids: np.ndarray


class Gallery:
    """A gallery file. Every method opens it anew, so it always sees one whole state."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingInput(f"gallery {path} is not there; python -m reid gallery create makes one")
        with self.open() as f:
            if f.attrs.get("gallery") != FORMAT:
                raise InputError(f"{path} is no gallery; python -m reid gallery create makes one")
            self.fingerprint = Fingerprint(f.attrs["weights"], f.attrs["size"], bool(f.attrs["flip"]))
            self.width = f["features"].shape[1]

    @classmethod
    def create(cls, path: str | Path, fingerprint: Fingerprint, entries: Entries, dtype: str = "float32") -> "Gallery":
        """A new gallery of the entries. Raises InputError when the file is there already, or entries are unsound."""
        path = Path(path)
        with alone(path):
            if path.exists():
                raise InputError(f"{path} is already there; gallery add adds to it")
            check(entries, entries.features.shape[1], set())
            write(path, fingerprint, None, None, entries, dtype)
        return cls(path)

    @contextmanager
    def open(self) -> Iterator[h5py.File]:
        try:
            with h5py.File(self.path, "r") as f:
                yield f
        except (OSError, KeyError) as e:
            if isinstance(e, InputError):
                raise
            raise InputError(f"gallery {self.path} cannot be read: {e}. It is damaged, or no gallery") from e

    def __len__(self) -> int:
        with self.open() as f:
            return len(f["features"])

    def labels(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """(names, pids, camids)."""
        with self.open() as f:
            return f["names"].asstr()[:].tolist(), f["pids"][:], f["camids"][:]

    def refuse_other(self, fingerprint: Fingerprint) -> None:
        """Raises InputError when features of `fingerprint` cannot be compared with the gallery's."""
        other = [k for k in Fingerprint._fields if getattr(self.fingerprint, k) != getattr(fingerprint, k)]
        if other:
            said = ", ".join(f"{k} {getattr(fingerprint, k)} instead of {getattr(self.fingerprint, k)}" for k in other)
            raise InputError(f"{self.path} was made by another model or setting: {said}; features of the two cannot be "
                             "compared. Use the gallery's own, or create another gallery")  # fmt: skip

    def add(self, fingerprint: Fingerprint, entries: Entries) -> None:
        """Adds entries at the end, all or none. Raises InputError for another fingerprint, names that are there."""
        with alone(self.path):
            self.refuse_other(fingerprint)
            check(entries, self.width, set(self.labels()[0]))
            with self.open() as old:
                write(self.path, self.fingerprint, old, None, entries)

    def remove(self, chosen: Callable[[list[str], np.ndarray], np.ndarray]) -> int:
        """Takes out the entries for which chosen(names, pids) is true (M,); returns how many."""
        with alone(self.path):
            names, pids, _ = self.labels()
            kept = ~chosen(names, pids)
            if not kept.all():
                with self.open() as old:
                    write(self.path, self.fingerprint, old, np.flatnonzero(kept), None)
            return int((~kept).sum())

    def search(self, queries: np.ndarray, top: int, threshold: float = np.inf) -> list[Answers]:
        """The exact `top` nearest of each of queries (Q, F), fewer where distances exceed `threshold`.

        The gallery passes through memory once, in pieces of CHUNK / 4 numbers. Of entries equally near, those added first.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise InputError(f"queries have shape {queries.shape}; {self.path} expects (queries, {self.width})")
        keys, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        with self.open() as f:
            data = f["features"]
            step = max(1, CHUNK // 4 // max(self.width, len(queries)))  # a piece stays in the cache between two looks
            buffer = np.empty((min(step, len(data)), self.width), data.dtype)
            for start in range(0, len(data), step):
                piece = buffer[: min(step, len(data) - start)]
                data.read_direct(piece, np.s_[start : start + len(piece)])
                found = np.empty((len(queries), len(piece)), np.float32)
                piece = piece.astype(np.float32, copy=False)
                if len(odd := odd_lengths(piece)):
                    raise InputError(f"gallery {self.path} is damaged: the feature of entry {start + odd[0]} has not "
                                     "length 1; create it again from its images")  # fmt: skip
                products(-queries, piece, found)
                best = nearest(found, min(top, len(piece)))
                keys = np.concatenate([keys, np.take_along_axis(found, best, 1)], 1)
                rows = np.concatenate([rows, best + start], 1)
                order = keys.argsort(1, kind="stable")[:, :top]
                keys, rows = np.take_along_axis(keys, order, 1), np.take_along_axis(rows, order, 1)
            distances = np.maximum(2 + 2 * keys, 0)
            answers = []
            for row, distance in zip(rows, distances):
                row, distance = row[distance <= threshold], distance[distance <= threshold]
                names, pids, camids = ([f[k][i] for i in row] for k in ("names", "pids", "camids"))
                names = [n.decode() for n in names]
                answers.append(Answers(row, distance, names, np.array(pids, int), np.array(camids, int)))
        return answers


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Alone among processes that change the gallery; what a killed one left is cleaned away."""
    with locked(path):
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            stale.unlink(missing_ok=True)
        yield


def check(entries: Entries, width: int, present: set[str]) -> None:
    """Raises InputError when entries cannot stand in a gallery of `width` that has the names `present`."""
    f = entries.features
    if f.ndim != 2 or f.shape[1] != width or not len(f) == len(entries.names) == len(entries.pids):
        raise InputError(f"features have shape {f.shape} for {len(entries.names)} names; expected width {width}")
    step = max(1, CHUNK // max(1, width))
    for i in range(0, len(f), step):
        if len(odd := odd_lengths(f[i : i + step].astype(np.float32, copy=False))):
            raise InputError(f"feature {entries.names[i + odd[0]]} has not length 1; the weights or the file it came "
                             "from may be damaged")  # fmt: skip
    seen = set(present)
    twice = [n for n in entries.names if n in seen or seen.add(n)]
    if twice:
        raise InputError(f"{len(twice)} of {len(f)} names are in the gallery already, or twice, as {twice[0]}; nothing "
                         "was added. gallery remove takes entries out")  # fmt: skip


def odd_lengths(features: np.ndarray) -> np.ndarray:
    """Rows of float32 (M, F) that are not of unit length, NaN among them."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.vecdot(features, features)
    return np.flatnonzero(~(abs(squares - 1) < UNIT_TOLERANCE))


def write(
    path: Path, mark: Fingerprint, old: h5py.File | None, kept: Sequence[int] | None, new: Entries | None, dtype=None
) -> None:
    """The rows `kept` (None: all) of `old`, then `new`, as the new state of `path`, in pieces of bounded size."""
    had = len(old["features"]) if old is not None else 0
    kept = np.arange(had) if kept is None else np.asarray(kept)
    added = 0 if new is None else len(new.features)
    total, width = len(kept) + added, (old["features"] if new is None else new.features).shape[1]
    try:
        with atomic_file(path) as temporary, h5py.File(temporary, "w") as f:
            f.attrs.update({"gallery": FORMAT, **mark._asdict()})
            features = f.create_dataset("features", (total, width), dtype or old["features"].dtype)
            step = max(1, CHUNK // max(1, width))
            for i in range(0, len(kept), step):
                rows = kept[i : i + step]
                piece = old["features"][rows[0] : rows[-1] + 1]
                features[i : i + len(rows)] = piece[rows - rows[0]]
            for i in range(0, added, step):
                features[len(kept) + i : len(kept) + min(i + step, added)] = new.features[i : i + step]
            for name in ("names", "pids", "camids"):
                before = (old[name].asstr() if name == "names" else old[name])[:][kept] if had else []
                values = [*before, *(getattr(new, name) if new is not None else [])]
                f.create_dataset(name, data=values, dtype=h5py.string_dtype() if name == "names" else np.int64)
    except OSError as e:
        raise InputError(f"{path} cannot be written, it is as it was: {e}") from e
