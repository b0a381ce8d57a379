"""The HDF5 features file: its header is made in memory, its rows are written in place, and it is read back.

The features are the last block of the file, so rows are written as ordinary bytes. A killed process leaves whole rows,
and a full disk raises OSError. (After a failed write, HDF5 itself cannot close the file and crashes later.)
"""

import json
import logging
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from reid.data.labels import Labels
from reid.errors import InputError
from reid.evaluation.record import Record, differences, read_record
from reid.files import reserve, sync_folder, writing

logger = logging.getLogger(__name__)

ROWS = 1 << 12  # read or checked at once


class FeaturesWriter:
    """Writes a features file row by row: <path>.partial until it is complete.

    labels: names, pids, camids and subset of all images, and what label_rows gives. A file with other labels or
    another record is replaced.
    """

    def __init__(self, path: Path, record: Record, labels: dict[str, Any]):
        self.path, self.record, self.labels = path, record, labels
        self.partial = path.with_name(path.name + ".partial")
        self.total = len(labels["names"])
        self.is_complete = False

    def count_done(self) -> int:
        """Rows that need no extraction: all of a complete file, or those of an interrupted one."""
        self.is_complete = self.is_ours(self.path)
        if self.is_complete:
            return self.total
        return count_written(self.partial) if self.is_ours(self.partial) else 0

    def is_ours(self, path: Path) -> bool:
        """Whether a file has these images and this record. Logs why an existing file does not."""
        if not path.exists():
            return False
        try:
            found = read_record(path)
        except InputError as e:
            logger.info(f"{e} (the features are extracted again)")
            return False
        if found == self.record and has_labels(path, self.labels):
            return True
        why = differences(found, self.record) or "other images or labels"
        logger.info(f"{path} has other settings ({why}); the features are extracted again")
        return False

    def write(self, features: np.ndarray, done: int, attrs: dict[str, Any]) -> None:
        """Writes rows (n, F) from number `done` on. Raises InputError if writing fails."""
        with writing(self.path):
            if not done:
                attrs = {"record": json.dumps(self.record.to_json()), **attrs}
                create(self.partial, attrs, self.labels, (self.total, features.shape[1]))
            with open(self.partial, "rb+") as f:
                f.seek(place_of(self.partial, done))
                f.write(features.tobytes())

    def finish(self) -> None:
        """Moves the complete file to its final path."""
        if self.is_complete:
            return
        with writing(self.path):
            with open(self.partial, "rb+") as f:
                os.fsync(f.fileno())
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)


def create(path: Path, attrs: dict[str, Any], labels: dict[str, Any], shape: tuple[int, int]) -> None:
    """Creates a features file whose rows, of `shape`, are zero. Raises OSError, and then leaves no file."""
    content = header(attrs, labels, shape)
    try:
        path.write_bytes(content)
        reserve(path, len(content) + 4 * shape[0] * shape[1])
    except OSError:
        path.unlink(missing_ok=True)
        raise


def header(attrs: dict[str, Any], labels: dict[str, Any], shape: tuple[int, int], dtype="float32") -> bytes:
    """The bytes of a features file before its rows. labels: lists of strings or integer arrays, by name.

    Beyond 6 parts in one group HDF5 may put the group's table after the rows, so further ones need a group.
    """
    memory = BytesIO()
    with h5py.File(memory, "w") as f:
        for name, values in labels.items():
            kind = h5py.string_dtype() if isinstance(values, list) else None
            f.create_dataset(name, data=values, dtype=kind)
        f.attrs.update(attrs)
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space, number = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype))
        data = h5py.h5d.create(f.id, b"features", number, space, layout)
        f.flush()
        size = shape[0] * shape[1] * np.dtype(dtype).itemsize
        start = f.id.get_filesize() - size
        assert not size or data.get_offset() == start, "HDF5 put something after the features"
    return memory.getvalue()[:start]


def place_of(path: Path, row: int) -> int:
    """Byte offset of a row of features in a file."""
    with h5py.File(path, "r") as f:
        data = f["features"]
        return data.id.get_offset() + row * data.shape[1] * data.dtype.itemsize


def count_written(path: Path) -> int:
    """Number of rows before the first without unit length. Unwritten rows are zero."""
    with h5py.File(path, "r") as f:
        rows = f["features"]
        for i in range(0, len(rows), ROWS):
            with np.errstate(over="ignore", invalid="ignore"):
                unit = np.abs(np.square(rows[i : i + ROWS], dtype=np.float32).sum(1) - 1) < 2e-3
            if not unit.all():
                return i + int(np.argmin(unit))
        return len(rows)


def has_labels(path: Path, labels: dict[str, Any]) -> bool:
    """Whether `path` is a readable features file with these labels."""
    try:
        with h5py.File(path, "r") as f:
            found = {k: f[k].asstr()[:] if isinstance(v, list) else f[k][:] for k, v in labels.items()}
            return all(np.array_equal(found[k], v) for k, v in labels.items())
    except (OSError, KeyError, TypeError, ValueError):
        return False


def label_rows(labels: Labels, names: Sequence[str]) -> dict[str, list[str]]:
    """The user's names as parts of a features file, for images with these names; empty where none are given.

    labels/identities: by pid. labels/cameras: by camid. labels/sources: of each image. labels/tracks: likewise, ""
    for an image without a track.
    """
    parts: dict[str, list[str]] = {}
    if labels.given:
        sources = [labels.source(name) for name in names]
        parts = {"identities": [*labels.identities], "cameras": [*labels.cameras], "sources": sources}
    if labels.tracks:
        parts["tracks"] = [labels.tracks.get(name, "") for name in names]
    return {f"labels/{part}": values for part, values in parts.items()}


def read_labels(path: Path) -> Labels:
    """The inverse of label_rows, for a features file."""
    with h5py.File(path, "r") as f:
        if "labels" not in f:
            return Labels()
        names = f["names"].asstr()[:].tolist()
        parts = {part: values.asstr()[:].tolist() for part, values in f["labels"].items()}
    sources, tracks = (dict(zip(names, parts.get(part, ()))) for part in ("sources", "tracks"))
    tracks = {name: track for name, track in tracks.items() if track}
    return Labels(parts.get("identities", ()), parts.get("cameras", ()), sources, tracks)


def is_features(path: Path) -> bool:
    """Whether a file is HDF5 and has the attributes of a features file of this project."""
    try:
        with h5py.File(path, "r") as f:
            return "slots" in f.attrs
    except OSError:
        return False


def read_h5(path: Path) -> tuple[dict[str, tuple], dict[str, Any]]:
    """({side: (features, pids, camids, names)}, attributes)."""
    with h5py.File(path, "r") as f:
        subset = f["subset"].asstr()[:]
        camids = f["camids"][:] if "camids" in f else None
        names, pids, data = f["names"].asstr()[:], f["pids"][:], f["features"]
        if not isinstance(data, h5py.Dataset):
            raise InputError(f"{path}: 'features' is a group, expected one array (M, F)")
        if data.ndim != 2 or not len(data) == len(subset) == len(names) == len(pids):
            raise InputError(
                f"{path}: features have shape {data.shape}, but there are {len(subset)} subsets, "
                f"{len(names)} names and {len(pids)} pids"
            )
        sides = {}
        for side in ("query", "gallery"):
            rows = np.flatnonzero(subset == side)
            side_camids = None if camids is None else camids[rows]
            sides[side] = (read_rows(data, rows), pids[rows], side_camids, names[rows].tolist())
        attrs = {k: v.tolist() if isinstance(v, np.generic | np.ndarray) else v for k, v in f.attrs.items()}
        return sides, attrs


def read_rows(data: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Reads rows, given in ascending order. Contiguous rows are read without the rest."""
    first = rows[0] if len(rows) else 0
    if np.array_equal(rows, np.arange(first, first + len(rows))):
        return data[first : first + len(rows)]
    return data[:][rows]
