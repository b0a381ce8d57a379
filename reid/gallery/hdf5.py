"""A gallery: one HDF5 file of descriptors that can be searched.

features (M, F) float32 or float16 of unit length, names (paths relative to the gallery's folder with forward slashes,
each once), pids and camids (-1 where unknown). labels/identities and labels/cameras: the label of each pid and camid,
as text. labels/sources (M,): the user's own names of the images, where they differ. attrs: the fingerprint (SHA-256
of the weights, input size, flip). Format 1, which is still read, has no labels: its numbers are the labels.

A change writes a new file beside the old one and replaces it under a lock. So a killed process leaves the old state or
the new one, never a mixture.
"""

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from reid.data.labels import Labels
from reid.errors import InputError, MissingInput
from reid.evaluation.distances import CHUNK, nearest, products
from reid.evaluation.store import header
from reid.files import atomic_file, locked, writing
from reid.gallery.store import (
    ALL,
    Answers,
    Entries,
    Fingerprint,
    Listing,
    Only,
    Store,
    check_features,
    check_names,
    odd_lengths,
    renumbered,
    rows_at_once,
    texts,
)

FORMAT = 2
READABLE = (1, 2)
IDENTITIES, CAMERAS, SOURCES = "labels/identities", "labels/cameras", "labels/sources"
COLUMNS = ("features", "names", "pids", "camids")  # of equal length


class Gallery(Store):
    """A gallery file. Every method opens the file itself, so it sees one complete state."""

    def __init__(self, path: str | Path):
        self.path, self.address = Path(path), str(path)
        if not self.path.is_file():
            raise MissingInput(f"gallery {path} does not exist; python -m reid gallery create makes one")
        with self.open() as f:
            if f.attrs.get("gallery") not in READABLE:
                raise InputError(f"{path} is not a gallery; python -m reid gallery create makes one")
            self.fingerprint = Fingerprint(f.attrs["weights"], f.attrs["size"], bool(f.attrs["flip"]))
            self.width = f["features"].shape[1]
            if len({len(f[k]) for k in COLUMNS}) > 1:
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
                self.refuse_replaced(f)
                yield f
        except (OSError, KeyError) as e:
            raise InputError(f"gallery {self.path} cannot be read: {e}. It is damaged, or not a gallery") from e

    def refuse_replaced(self, f: h5py.File) -> None:
        """Raises InputError where another gallery has taken the place of the file since it was opened."""
        known = getattr(self, "fingerprint", None)
        if known and known != Fingerprint(f.attrs["weights"], f.attrs["size"], bool(f.attrs["flip"])):
            raise InputError(f"{self.path} was replaced by a gallery of another model or setting; open it again")

    def features_of(self, answers: Answers) -> np.ndarray:
        with self.open() as f:
            rows, places = np.unique(answers.rows, return_inverse=True)
            if len(rows) and rows[-1] < len(f["names"]) and f["names"].asstr()[rows][places].tolist() == answers.names:
                return f["features"][rows][places].astype(np.float32)
        if not len(rows):
            return np.empty((0, self.width), np.float32)
        raise InputError(f"{self.path} was changed after the search; search again")

    def __len__(self) -> int:
        with self.open() as f:
            return len(f["features"])

    @contextmanager
    def entries(self) -> Iterator[Entries]:
        with self.open() as f:
            yield stored(f)

    def present(self, names: Sequence[str]) -> set[str]:
        with self.open() as f:
            return set(names).intersection(f["names"].asstr()[:].tolist())

    def info(self) -> dict[str, str]:
        with self.open() as f:
            dtype = f["features"].dtype
        size = f"{self.path.stat().st_size / 2**20:,.1f} MiB"
        return {"features": f"{self.width} {dtype}", "file": size, "index": "none; the search is exact"}

    def listing(self) -> Listing:
        with self.open() as f:
            _, names, pids, camids, labels = stored(f)
        return Listing(names, texts(pids, labels.identities), texts(camids, labels.cameras))

    def add(self, fingerprint: Fingerprint, entries: Entries) -> None:
        """All entries are added, or none."""
        with alone(self.path):
            self.refuse_other(fingerprint)
            check_features(entries, self.width)
            check_names(entries.names, self.present(entries.names))
            self.change(np.ones(len(self), bool), everything(entries))

    def remove(self, chosen: Callable[[Listing], np.ndarray]) -> int:
        """The file is written anew without the entries, so their bytes are no longer in it."""
        with alone(self.path):
            kept = ~chosen(self.listing())
            if not kept.all():
                self.change(kept)
            return int((~kept).sum())

    def change(self, kept: np.ndarray, *new: tuple[Entries, np.ndarray]) -> None:
        """Writes the new state: the entries where `kept` (M,) is true, then the new parts."""
        # the inner writing(): open() would report a full disk as a gallery that cannot be read
        with writing(self.path), atomic_file(self.path) as temporary, self.open() as f, writing(self.path):
            fill(temporary, self.fingerprint, [(stored(f), kept), *new], f["features"].dtype)

    def search(self, queries: np.ndarray, top: int, threshold: float = np.inf, only: Only = ALL) -> list[Answers]:
        """The search is exact. The gallery passes through memory once, in pieces of CHUNK / 4 numbers."""
        queries = self.check_queries(queries)
        keys, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        with self.open() as f:
            left_out = ~matching(f, only) if any(only) else None
            for start, piece in self.pieces(f["features"], len(queries)):
                found = np.empty((len(queries), len(piece)), np.float32)
                products(-queries, piece, found)
                if left_out is not None:
                    found[:, left_out[start : start + len(piece)]] = np.inf
                best = nearest(found, min(top, len(piece)))
                keys = np.concatenate([keys, np.take_along_axis(found, best, 1)], 1)
                rows = np.concatenate([rows, best + start], 1)
                order = keys.argsort(1, kind="stable")[:, :top]
                keys, rows = np.take_along_axis(keys, order, 1), np.take_along_axis(rows, order, 1)
            wanted, places = np.unique(rows, return_inverse=True)
            names = f["names"].asstr()[wanted]
            identities = labels_at(f, IDENTITIES, f["pids"][wanted])
            cameras = labels_at(f, CAMERAS, f["camids"][wanted])
            sources = f[SOURCES].asstr()[wanted] if SOURCES in f else names
        columns = [np.asarray(column, object) for column in (names, identities, cameras, sources)]
        distances = np.maximum(2 + 2 * keys, 0)
        answers = []
        for row, place, distance in zip(rows, places.reshape(rows.shape), distances):
            near = np.isfinite(distance) & (distance <= threshold)
            texts_of = (column[place[near]].tolist() for column in columns)
            answers.append(Answers(row[near], distance[near], *texts_of))
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
    names = f["names"].asstr()[:].tolist()
    labels = Labels()
    if f.attrs["gallery"] > 1:
        identities, cameras = (f[part].asstr()[:].tolist() for part in (IDENTITIES, CAMERAS))
        sources = f[SOURCES].asstr()[:].tolist() if SOURCES in f else []
        labels = Labels(identities, cameras, dict(zip(names, sources)))
    return Entries(f["features"], names, f["pids"][:], f["camids"][:], labels)


def matching(f: h5py.File, only: Only) -> np.ndarray:
    """(M,) whether each entry of an open gallery has the labels."""
    mask = np.ones(len(f["names"]), bool)
    for numbers, part, labels in (("pids", IDENTITIES, only.identities), ("camids", CAMERAS, only.cameras)):
        if labels:
            known, places = np.unique(f[numbers][:], return_inverse=True)
            mask &= np.isin(labels_at(f, part, known), [*labels])[places]
    return mask


def labels_at(f: h5py.File, part: str, numbers: np.ndarray) -> list[str]:
    """`texts` of a few numbers, which reads only their labels. part: IDENTITIES or CAMERAS."""
    if f.attrs["gallery"] == 1:
        return texts(numbers, [])
    found = np.unique(numbers[numbers >= 0])
    known = dict(zip(found.tolist(), f[part].asstr()[found]))
    return [known.get(n, "") for n in numbers.tolist()]


def everything(entries: Entries) -> tuple[Entries, np.ndarray]:
    """The entries with a mask (M,) that keeps all of them."""
    return entries, np.ones(len(entries.features), bool)


def fill(path: Path, mark: Fingerprint, parts: Sequence[tuple[Entries, np.ndarray]], dtype: np.dtype) -> None:
    """Writes a gallery of the entries of all parts where their mask (M,) is true. Features are copied in pieces."""
    total, width = sum(int(kept.sum()) for _, kept in parts), parts[0][0].features.shape[1]
    pids, identities = renumbered([(part.pids[kept], part.labels.identities) for part, kept in parts])
    camids, cameras = renumbered([(part.camids[kept], part.labels.cameras) for part, kept in parts])
    columns: dict[str, Any] = {
        "names": [name for part, kept in parts for name, keep in zip(part.names, kept) if keep],
        "pids": pids,
        "camids": camids,
        IDENTITIES: identities,
        CAMERAS: cameras,
    }
    sources = {name: source for part, _ in parts for name, source in part.labels.sources.items() if name != source}
    if sources:
        columns[SOURCES] = [sources.get(name, name) for name in columns["names"]]
    step = rows_at_once(width)
    with open(path, "wb") as f:
        f.write(header({"gallery": FORMAT, **mark._asdict()}, columns, (total, width), dtype))
        for part, kept in parts:
            for i in range(0, len(kept), step):
                rows = part.features[i : i + step][kept[i : i + step]]
                f.write(rows.astype(dtype, copy=False).tobytes())
