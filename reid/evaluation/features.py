"""Features of a test, and the files they are read from: our features.h5, anybody's .npz, layumi's .mat."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from reid.errors import InputError, MissingInput
from reid.evaluation.foreign import read_mat, read_npz
from reid.evaluation.record import UNKNOWN, Record, read_record
from reid.evaluation.store import ROWS, read_h5
from reid.files import sha256

UNREADABLE = (OSError, ValueError, EOFError, TypeError, AttributeError, IndexError, BadZipFile, zlib.error,
              NotImplementedError)  # what h5py, NumPy and SciPy make of damage  # fmt: skip
LARGEST = np.float32(1e15)  # of a feature's numbers: their squares' sums are finite


@dataclass(frozen=True)
class Part:
    """One side of a test: features (M, F) float16 or float32, pids and camids (M,) integers, names of length M;
    camids None for a protocol without cameras."""

    features: np.ndarray
    pids: np.ndarray
    camids: np.ndarray | None
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.features)

    def where(self, kept: np.ndarray) -> "Part":
        """The part of a boolean (M,)."""
        camids = None if self.camids is None else self.camids[kept]
        return Part(self.features[kept], self.pids[kept], camids, [n for n, k in zip(self.names, kept) if k])


@dataclass(frozen=True)
class Features:
    """A test's features. attrs: slots (S, D) and bands (S, 2), where known. record: what made the features."""

    query: Part
    gallery: Part
    attrs: dict[str, Any]
    record: Record = UNKNOWN


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths below the folder that all have in common."""
    root = common_folder(paths)
    return [Path(os.path.relpath(p, root)).as_posix() for p in paths]


def common_folder(paths: Sequence[str]) -> str:
    """Absolute."""
    return os.path.commonpath({os.path.dirname(os.path.abspath(p)) for p in paths})


def read_features(path: str | Path) -> Features:
    """A features file by its suffix: .h5 (ours), .npz (query_features, query_pids, query_camids and the same for
    gallery; without camids: no cameras), .mat (layumi: query_f, query_label, query_cam, ...). Gallery rows with
    pid -1 are junk and left out. Raises InputError naming file and entry."""
    path = Path(path)
    readers = {".h5": read_h5, ".npz": read_npz, ".mat": read_mat}
    if path.suffix not in readers:
        raise InputError(f"{path}: type {path.suffix or 'unknown'}; expected a features file {', '.join(readers)}")
    if not path.is_file():
        raise MissingInput(f"features file {path} is not there; evaluate.py writes one")
    try:
        sides, attrs = readers[path.suffix](path)
    except KeyError as e:
        raise InputError(f"{path}: {e.args[0]}; is it a features file?") from e
    except UNREADABLE as e:
        raise InputError(f"{path} cannot be read: {e}. It is cut short or damaged; make it again") from e
    parts = [checked(path, side, *values) for side, values in sides.items()]
    if parts[0].features.shape[1] != parts[1].features.shape[1]:
        raise InputError(
            f"{path}: query features are {parts[0].features.shape[1]} wide, gallery features "
            f"{parts[1].features.shape[1]}; both must come from one model"
        )
    if (parts[1].pids == -1).any():
        parts[1] = parts[1].where(parts[1].pids != -1)
    record = record_of(path, attrs)
    attrs.pop("record", None)
    return Features(*parts, attrs, record)


def record_of(path: Path, attrs: dict[str, Any]) -> Record:
    """What made a features file; of another system's file only its SHA-256 is known."""
    if "record" in attrs or "weights" in attrs:  # without a record: made by an older version of this project
        return read_record(path)
    return Record(features=sha256(path))


def checked(path: Path, side: str, features, pids, camids, names) -> Part:
    """One side, with every shape and value that evaluation relies upon. Raises InputError."""
    if features.ndim != 2 or features.dtype.kind not in "fiu" or not features.shape[1]:
        raise InputError(
            f"{path}: {side} features have shape {features.shape} and type {features.dtype}; expected (images, width)"
        )
    for name, values in (("pids", pids), ("camids", camids), ("names", names)):
        if values is not None and (np.ndim(values) != 1 or len(values) != len(features)):
            raise InputError(f"{path}: {len(features)} {side} features, but {name} of shape {np.shape(values)}")
    if features.dtype not in (np.float16, np.float32):
        with np.errstate(over="ignore"):  # infinite then, and refused
            features = features.astype(np.float32)
    for i in range(0, len(features), ROWS):
        bad = np.flatnonzero(~(np.abs(features[i : i + ROWS]) < LARGEST).all(1))
        if len(bad):
            raise InputError(f"{path}: {side} feature row {i + bad[0]} has NaN or infinite values, or too large ones; "
                             "extract it again")  # fmt: skip
    names = [str(i) for i in range(len(features))] if names is None else names
    return Part(np.ascontiguousarray(features), np.asarray(pids), camids, names)
