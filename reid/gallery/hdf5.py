"""A gallery: one HDF5 file of descriptors that can be searched.

features (M, F) float32 or float16 of unit length, names (paths relative to the gallery's folder with forward slashes,
each once), pids and camids (-1 where unknown). attrs: the fingerprint (SHA-256 of the weights, input size, flip).
A change writes a new file beside the old one and replaces it under a lock. So a killed process leaves the old state or
the new one, never a mixture.
"""

import glob
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from reid.errors import InputError, MissingInput
from reid.evaluation.distances import CHUNK, UNIT_TOLERANCE, nearest, products
from reid.evaluation.store import header
from reid.files import atomic_file, locked, writing

FORMAT = 1


class Fingerprint(NamedTuple):
    """What descriptors depend on. Descriptors of two fingerprints cannot be compared."""

    weights: str  # SHA-256 of the file
    size: str  # "384x128", height x width
    flip: bool


class Entries(NamedTuple):
    """Descriptors of M images."""

    features: np.ndarray  # (M, F); of a stored gallery the HDF5 dataset
    names: list[str]
    pids: np.ndarray  # (M,)
    camids: np.ndarray  # (M,)


class Answers(NamedTuple):
    """The answers to one query, nearest first."""

    rows: np.ndarray  # of the gallery
    distances: np.ndarray  # squared Euclidean, 0 to 4
    names: list[str]
    pids: np.ndarray
    camids: np.ndarray


class Gallery:
    """A gallery file. Every method opens the file itself, so it sees one complete state."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise MissingInput(f"gallery {path} does not exist; python -m reid gallery create makes one")
        with self.open() as f:
            if f.attrs.get("gallery") != FORMAT:
                raise InputError(f"{path} is not a gallery; python -m reid gallery create makes one")
            self.fingerprint = Fingerprint(f.attrs["weights"], f.attrs["size"], bool(f.attrs["flip"]))
            self.width = f["features"].shape[1]
            if len({len(f[k]) for k in Entries._fields}) > 1:
                raise InputError(f"gallery {path} is damaged: features, names, pids and camids differ in length")

    @classmethod
    def create(cls, path: str | Path, fingerprint: Fingerprint, entries: Entries, dtype: str = "float32") -> "Gallery":
        """A new gallery of the entries. Raises InputError when the file exists, or entries cannot be used."""
        path = Path(path)
        with alone(path):
            if path.exists():
                raise InputError(f"{path} already exists; use gallery add")
            check_features(entries, None)
            check_names(entries.names, [])
            with writing(path), atomic_file(path) as temporary:
                fill(temporary, fingerprint, [everything(entries)], np.dtype(dtype))
        return cls(path)

    @contextmanager
    def open(self) -> Iterator[h5py.File]:
        try:
            with h5py.File(self.path, "r") as f:
                yield f
        except (OSError, KeyError) as e:
            raise InputError(f"gallery {self.path} cannot be read: {e}. It is damaged, or not a gallery") from e

    def __len__(self) -> int:
        with self.open() as f:
            return len(f["features"])

    def labels(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """(names, pids, camids)."""
        with self.open() as f:
            return stored(f)[1:]

    def refuse_other(self, fingerprint: Fingerprint) -> None:
        """Raises InputError when features of `fingerprint` cannot be compared with the gallery's."""
        pairs = zip(Fingerprint._fields, fingerprint, self.fingerprint)
        other = [f"{name} {theirs} instead of {ours}" for name, theirs, ours in pairs if theirs != ours]
        if other:
            raise InputError(
                f"{self.path} was made by another model or setting: {', '.join(other)}. The features cannot be "
                "compared; use the gallery's weights and settings, or create another gallery"
            )

    def add(self, fingerprint: Fingerprint, entries: Entries) -> None:
        """Adds entries at the end, all or none. Raises InputError for another fingerprint or names that exist."""
        with alone(self.path):
            self.refuse_other(fingerprint)
            names, *_ = self.labels()
            check_features(entries, self.width)
            check_names(entries.names, names)
            self.change(np.ones(len(names), bool), everything(entries))

    def remove(self, chosen: Callable[[list[str], np.ndarray], np.ndarray]) -> int:
        """Removes the entries for which chosen(names, pids) is true (M,); returns how many."""
        with alone(self.path):
            names, pids, _ = self.labels()
            kept = ~chosen(names, pids)
            del names  # they need much of the memory
            if not kept.all():
                self.change(kept)
            return int((~kept).sum())

    def change(self, kept: np.ndarray, *new: tuple[Entries, np.ndarray]) -> None:
        """Writes the new state: the entries where `kept` (M,) is true, then the new parts."""
        # the inner writing(): open() would report a full disk as a gallery that cannot be read
        with writing(self.path), atomic_file(self.path) as temporary, self.open() as f, writing(self.path):
            fill(temporary, self.fingerprint, [(stored(f), kept), *new], f["features"].dtype)

    def search(self, queries: np.ndarray, top: int, threshold: float = np.inf) -> list[Answers]:
        """The exact `top` nearest of each of queries (Q, F) of unit length; fewer where distances exceed `threshold`.

        The gallery passes through memory once, in pieces of CHUNK / 4 numbers. Of equally near entries, the first
        added come first.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise InputError(f"queries have shape {queries.shape}; {self.path} expects (queries, {self.width})")
        if len(odd := odd_lengths(queries)):
            raise InputError(f"query {odd[0]} does not have length 1; make descriptors with reid.Extractor")
        keys, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        with self.open() as f:
            for start, piece in self.pieces(f["features"], len(queries)):
                found = np.empty((len(queries), len(piece)), np.float32)
                products(-queries, piece, found)
                best = nearest(found, min(top, len(piece)))
                keys = np.concatenate([keys, np.take_along_axis(found, best, 1)], 1)
                rows = np.concatenate([rows, best + start], 1)
                order = keys.argsort(1, kind="stable")[:, :top]
                keys, rows = np.take_along_axis(keys, order, 1), np.take_along_axis(rows, order, 1)
            wanted, places = np.unique(rows, return_inverse=True)
            names, pids, camids = f["names"].asstr()[wanted], f["pids"][wanted], f["camids"][wanted]
        distances = np.maximum(2 + 2 * keys, 0)
        answers = []
        for row, place, distance in zip(rows, places.reshape(rows.shape), distances):
            near = distance <= threshold
            place = place[near]
            answers.append(Answers(row[near], distance[near], names[place].tolist(), pids[place], camids[place]))
        return answers

    def pieces(self, features: h5py.Dataset, count: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, float32 rows) of the gallery, in pieces that stay in the cache for a search of `count` queries.

        Raises InputError where a row does not have length 1.
        """
        step = max(1, CHUNK // 4 // max(self.width, count))
        buffer = np.empty((min(step, len(features)), self.width), features.dtype)
        for start in range(0, len(features), step):
            piece = buffer[: min(step, len(features) - start)]
            features.read_direct(piece, np.s_[start : start + len(piece)])
            piece = piece.astype(np.float32, copy=False)
            if len(odd := odd_lengths(piece)):
                raise InputError(
                    f"gallery {self.path} is damaged: the feature of entry {start + odd[0]} does not have length 1; "
                    "create it again from its images"
                )
            yield start, piece


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Excludes other processes that change the gallery, and removes the temporary files of killed ones."""
    with locked(path):
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            stale.unlink(missing_ok=True)
        yield


def stored(f: h5py.File) -> Entries:
    """The entries of an open gallery; features stay in the file."""
    return Entries(f["features"], f["names"].asstr()[:].tolist(), f["pids"][:], f["camids"][:])


def everything(entries: Entries) -> tuple[Entries, np.ndarray]:
    """The entries with a mask (M,) that keeps all of them."""
    return entries, np.ones(len(entries.features), bool)


def check_features(entries: Entries, width: int | None) -> None:
    """Raises InputError when entries cannot be part of a gallery of `width` (None: a new one)."""
    f = entries.features
    if f.ndim != 2 or width not in (None, f.shape[1]) or len({len(part) for part in entries}) > 1:
        raise InputError(
            f"features have shape {f.shape}, there are {len(entries.names)} names, {len(entries.pids)} pids and "
            f"{len(entries.camids)} camids; expected (M, width{f' {width}' if width else ''}) and M of each"
        )
    step = rows_at_once(f.shape[1])
    for i in range(0, len(f), step):
        if len(odd := odd_lengths(f[i : i + step].astype(np.float32, copy=False))):
            name = entries.names[i + odd[0]]
            raise InputError(f"feature {name} does not have length 1; its weights or its file may be damaged")


def check_names(names: Sequence[str], present: Sequence[str]) -> None:
    """Raises InputError when one of `names` occurs twice or among those `present`."""
    known, count = set(present), Counter(names)
    twice = [n for n in names if count[n] > 1 or n in known]
    if twice:
        raise InputError(
            f"{len(twice)} of {len(names)} names are in the gallery already, or twice, for example {twice[0]}; "
            "nothing was added. Use gallery remove first"
        )


def odd_lengths(features: np.ndarray) -> np.ndarray:
    """Rows of float32 (M, F) that are not of unit length; rows with NaN are among them."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.vecdot(features, features)
    return np.flatnonzero(~(abs(squares - 1) < UNIT_TOLERANCE))


def rows_at_once(width: int) -> int:
    return max(1, CHUNK // max(1, width))


def fill(path: Path, mark: Fingerprint, parts: Sequence[tuple[Entries, np.ndarray]], dtype: np.dtype) -> None:
    """Writes a gallery of the entries of all parts where their mask (M,) is true. Features are copied in pieces."""
    total, width = sum(int(kept.sum()) for _, kept in parts), parts[0][0].features.shape[1]
    labels: dict[str, Any] = {
        "names": [name for part, kept in parts for name, keep in zip(part.names, kept) if keep],
        "pids": np.concatenate([part.pids[kept] for part, kept in parts]).astype(np.int64),
        "camids": np.concatenate([part.camids[kept] for part, kept in parts]).astype(np.int64),
    }
    step = rows_at_once(width)
    with open(path, "wb") as f:
        f.write(header({"gallery": FORMAT, **mark._asdict()}, labels, (total, width), dtype))
        for part, kept in parts:
            for i in range(0, len(kept), step):
                rows = part.features[i : i + step][kept[i : i + step]]
                f.write(rows.astype(dtype, copy=False).tobytes())
