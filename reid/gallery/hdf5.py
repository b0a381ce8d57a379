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
from reid.evaluation.store import header
from reid.files import atomic_file, locked, writing

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
            if len({len(f[k]) for k in ("features", "names", "pids", "camids")}) > 1:
                raise InputError(f"gallery {path} is damaged: features, names, pids and camids differ in length")

    @classmethod
    def create(cls, path: str | Path, fingerprint: Fingerprint, entries: Entries, dtype: str = "float32") -> "Gallery":
        """A new gallery of the entries. Raises InputError when the file is there already, or entries are unsound."""
        path = Path(path)
        with alone(path):
            if path.exists():
                raise InputError(f"{path} is already there; gallery add adds to it")
            check(entries, None, [])
            write(path, fingerprint, None, None, entries, dtype)
        return cls(path)

    @contextmanager
    def open(self) -> Iterator[h5py.File]:
        try:
            with h5py.File(self.path, "r") as f:
                yield f
        except (OSError, KeyError) as e:
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
            check(entries, self.width, self.labels()[0])
            with self.open() as old:
                write(self.path, self.fingerprint, old, None, entries)

    def remove(self, chosen: Callable[[list[str], np.ndarray], np.ndarray]) -> int:
        """Takes out the entries for which chosen(names, pids) is true (M,); returns how many."""
        with alone(self.path):
            names, pids, _ = self.labels()
            kept = ~chosen(names, pids)
            if not kept.all():
                with self.open() as old:
                    write(self.path, self.fingerprint, old, kept, None)
            return int((~kept).sum())

    def search(self, queries: np.ndarray, top: int, threshold: float = np.inf) -> list[Answers]:
        """The exact `top` nearest of each of queries (Q, F) of unit length, fewer where distances exceed `threshold`.

        The gallery passes through memory once, in pieces of CHUNK / 4 numbers. Of entries equally near, those added
        first.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise InputError(f"queries have shape {queries.shape}; {self.path} expects (queries, {self.width})")
        if len(odd := odd_lengths(queries)):
            raise InputError(f"query {odd[0]} has not length 1; descriptors are made by reid.Extractor")
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
            wanted, places = np.unique(rows, return_inverse=True)
            names, pids, camids = f["names"].asstr()[wanted], f["pids"][wanted], f["camids"][wanted]
        answers = []
        for row, place, distance in zip(rows, places.reshape(rows.shape), distances):
            near = distance <= threshold
            place = place[near]
            answers.append(Answers(row[near], distance[near], names[place].tolist(), pids[place], camids[place]))
        return answers


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Alone among processes that change the gallery; what a killed one left is cleaned away."""
    with locked(path):
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            stale.unlink(missing_ok=True)
        yield


def check(entries: Entries, width: int | None, present: Sequence[str]) -> None:
    """Raises InputError when entries cannot stand in a gallery of `width` (None: a new one) beside names `present`."""
    f = entries.features
    counts = {len(f), *map(len, entries[1:])}
    if f.ndim != 2 or width not in (None, f.shape[1]) or len(counts) > 1:
        raise InputError(
            f"features have shape {f.shape}, there are {len(entries.names)} names, {len(entries.pids)} pids and "
            f"{len(entries.camids)} camids; expected (M, width{f' {width}' if width else ''}) and M of each"
        )
    step = max(1, CHUNK // max(1, f.shape[1]))
    for i in range(0, len(f), step):
        if len(odd := odd_lengths(f[i : i + step].astype(np.float32, copy=False))):
            raise InputError(f"feature {entries.names[i + odd[0]]} has not length 1; the weights or the file it came "
                             "from may be damaged")  # fmt: skip
    check_names(entries.names, present)


def check_names(names: Sequence[str], present: Sequence[str]) -> None:
    """Raises InputError when one of `names` is there twice or among those `present`."""
    seen = set(present)
    twice = [n for n in names if n in seen or seen.add(n)]
    if twice:
        raise InputError(f"{len(twice)} of {len(names)} names are in the gallery already, or twice, as {twice[0]}; "
                         "nothing was added. gallery remove takes entries out")  # fmt: skip


def odd_lengths(features: np.ndarray) -> np.ndarray:
    """Rows of float32 (M, F) that are not of unit length, NaN among them."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.vecdot(features, features)
    return np.flatnonzero(~(abs(squares - 1) < UNIT_TOLERANCE))


def write(
    path: Path, mark: Fingerprint, old: h5py.File | None, kept: np.ndarray | None, new: Entries | None, dtype=None
) -> None:
    """The rows of `old` where `kept` (M,) is true (None: all), then `new`, as the new state of `path`, in pieces of
    bounded size. Raises InputError where it cannot be written; it is as it was then."""
    kept = np.ones(len(old["features"]) if old is not None else 0, bool) if kept is None else kept
    added = 0 if new is None else len(new.features)
    total, width = int(kept.sum()) + added, (old["features"] if new is None else new.features).shape[1]
    step, dtype = max(1, CHUNK // max(1, width)), np.dtype(dtype or old["features"].dtype)
    labels = {}
    for name in ("names", "pids", "camids"):
        before = (old[name].asstr() if name == "names" else old[name])[:][kept] if len(kept) else []
        values = [*before, *(getattr(new, name) if new is not None else [])]
        labels[name] = values if name == "names" else np.array(values, np.int64)
    pieces = [(old["features"], i, kept[i : i + step]) for i in range(0, len(kept), step)]
    pieces += [(new.features, i, slice(None)) for i in range(0, added, step)]
    with writing(path), atomic_file(path) as temporary, open(temporary, "wb") as f:
        f.write(header({"gallery": FORMAT, **mark._asdict()}, labels, (total, width), dtype))
        for source, i, rows in pieces:
            f.write(source[i : i + step][rows].astype(dtype, copy=False).tobytes())
