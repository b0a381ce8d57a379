"""What every gallery has, in a file or in Milvus: its entries, its answers, and the checks of both."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from reid.data.labels import Labels, named
from reid.errors import InputError
from reid.evaluation.distances import CHUNK, UNIT_TOLERANCE


class Fingerprint(NamedTuple):
    """What descriptors depend on. Descriptors of two fingerprints cannot be compared."""

    weights: str  # SHA-256 of the file
    size: str  # "384x128", height x width
    flip: bool


class Entries(NamedTuple):
    """Descriptors of M images. labels: of the pids, the camids and the names; without them numbers are the labels."""

    features: Any  # (M, F); of a stored gallery an object that reads its rows when it is sliced
    names: list[str]
    pids: np.ndarray  # (M,), -1 where unknown
    camids: np.ndarray  # (M,)
    labels: Labels = Labels()

    def select(self, kept: np.ndarray) -> "Entries":
        """The entries where `kept` (M,) is true. Their features are read when they are sliced."""
        rows = np.flatnonzero(kept)
        names = [self.names[i] for i in rows]
        return Entries(Selected(self.features, rows), names, self.pids[rows], self.camids[rows], self.labels)


class Selected:
    """Some rows (N,), in ascending order, of features (M, F); only slices of it can be read."""

    def __init__(self, features: Any, rows: np.ndarray):
        self.features, self.rows = features, rows
        self.shape, self.ndim, self.dtype = (len(rows), features.shape[1]), 2, features.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        rows = self.rows[part]
        if not len(rows):
            return np.empty((0, self.shape[1]), self.dtype)
        return self.features[rows[0] : rows[-1] + 1][rows - rows[0]]


class Answers(NamedTuple):
    """The answers to one query, nearest first."""

    rows: np.ndarray  # int64: the order in which entries were added; in a file the row
    distances: np.ndarray  # squared Euclidean, 0 to 4
    names: list[str]
    identities: list[str]  # labels, "" where unknown
    cameras: list[str]
    sources: list[str]  # the user's own names of the images


class Listing(NamedTuple):
    """What a gallery knows of its M images, as texts; "" where an identity or camera is unknown."""

    names: list[str]
    identities: list[str]
    cameras: list[str]


class Only(NamedTuple):
    """Limits a search to entries with these labels; an empty collection does not limit it. "" is an unknown label."""

    identities: Collection[str] = ()
    cameras: Collection[str] = ()


ALL = Only()


class Store(ABC):
    """A gallery. Each method sees one complete state, also when other processes change it.

    Every method raises InputError, and StoreUnavailable where the store does not answer.
    """

    address: str  # as the user wrote it
    fingerprint: Fingerprint
    width: int  # F

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def listing(self) -> Listing: ...

    @abstractmethod
    def entries(self) -> AbstractContextManager[Entries]:
        """All entries, in the order in which they were added."""

    @abstractmethod
    def present(self, names: Sequence[str]) -> set[str]:
        """The names that the gallery has."""

    @abstractmethod
    def add(self, fingerprint: Fingerprint, entries: Entries) -> None:
        """Adds entries at the end. Raises InputError for another fingerprint or names that exist."""

    @abstractmethod
    def remove(self, chosen: Callable[[Listing], np.ndarray]) -> int:
        """Removes the entries for which chosen(listing) is true (M,); returns how many."""

    @abstractmethod
    def search(self, queries: np.ndarray, top: int, threshold: float = np.inf, only: Only = ALL) -> list[Answers]:
        """The `top` nearest of each of queries (Q, F) of unit length; fewer where distances exceed `threshold`.

        Of equally near entries, the first added come first.
        """

    @abstractmethod
    def features_of(self, answers: Answers) -> np.ndarray:
        """The features (n, F) float32 of n answers. Raises InputError if an entry is no longer there."""

    @abstractmethod
    def info(self) -> dict[str, str]:
        """Properties to show: type of the features, size of the file, kind of the index."""

    def refuse_other(self, fingerprint: Fingerprint) -> None:
        """Raises InputError when features of `fingerprint` cannot be compared with the gallery's."""
        pairs = zip(Fingerprint._fields, fingerprint, self.fingerprint)
        other = [f"{name} {theirs} instead of {ours}" for name, theirs, ours in pairs if theirs != ours]
        if other:
            raise InputError(
                f"{self.address} was made by another model or setting: {', '.join(other)}. The features cannot be "
                "compared; use the gallery's weights and settings, or create another gallery"
            )

    def check_queries(self, queries: np.ndarray) -> np.ndarray:
        """Queries as float32. Raises InputError if they cannot be compared with the entries."""
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise InputError(f"queries have shape {queries.shape}; {self.address} expects (queries, {self.width})")
        if len(odd := odd_lengths(queries)):
            raise InputError(f"query {odd[0]} does not have length 1; make descriptors with reid.Extractor")
        return queries


def texts(numbers: np.ndarray, labels: Sequence[str]) -> list[str]:
    """The labels of (M,) numbers; "" for negative ones. Equal labels are one object."""
    known = {n: "" if n < 0 else named(labels, n) for n in np.unique(numbers).tolist()}
    return [known[n] for n in numbers.tolist()]


def renumbered(columns: Sequence[tuple[np.ndarray, Sequence[str]]]) -> tuple[np.ndarray, list[str]]:
    """(numbers, labels) of all columns together: each is (numbers, their labels). Equal labels become one."""
    places: dict[str, int] = {}
    parts = []
    for numbers, labels in columns:
        found, place = np.unique(numbers, return_inverse=True)
        new = [-1 if n < 0 else places.setdefault(named(labels, n), len(places)) for n in found.tolist()]
        parts.append(np.array(new, np.int64)[place])
    return np.concatenate(parts), list(places)


def check_features(entries: Entries, width: int | None) -> None:
    """Raises InputError when entries cannot be part of a gallery of `width` (None: a new one)."""
    f = entries.features
    if f.ndim != 2 or width not in (None, f.shape[1]) or len({len(part) for part in entries[:4]}) > 1:
        raise InputError(
            f"features have shape {f.shape}, there are {len(entries.names)} names, {len(entries.pids)} pids and "
            f"{len(entries.camids)} camids; expected (M, width{f' {width}' if width else ''}) and M of each"
        )
    step = rows_at_once(f.shape[1])
    for i in range(0, len(f), step):
        if len(odd := odd_lengths(f[i : i + step].astype(np.float32, copy=False))):
            name = entries.names[i + odd[0]]
            raise InputError(f"feature {name} does not have length 1; its weights or its file may be damaged")


def check_names(names: Sequence[str], present: Collection[str]) -> None:
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
