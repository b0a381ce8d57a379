"""The features of a test, read from our features.h5, any .npz, or layumi's .mat."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from reid.data.labels import Labels
from reid.errors import InputError, MissingInput
from reid.evaluation.record import UNKNOWN, Record, read_record
from reid.evaluation.store import ROWS, read_h5, read_labels
from reid.files import sha256

# what h5py, NumPy and SciPy raise for damaged files
UNREADABLE = (
    *(OSError, ValueError, EOFError, TypeError, AttributeError, IndexError, NotImplementedError),
    *(BadZipFile, zlib.error),
)
LARGEST = np.float32(1e15)  # number in a feature: sums of squares stay finite
SEVERAL = "multi_query.h5"  # beside features.h5: the query side has further images of the queries


@dataclass(frozen=True)
class Part:
    """One side of a test: features (M, F) float16 or float32, pids and camids (M,) integers, M names.

    camids: None for a protocol without cameras.
    """

    features: np.ndarray
    pids: np.ndarray
    camids: np.ndarray | None
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.features)

    def where(self, kept: np.ndarray) -> "Part":
        """The rows where `kept`, boolean (M,), is true."""
        camids = None if self.camids is None else self.camids[kept]
        return Part(self.features[kept], self.pids[kept], camids, [n for n, k in zip(self.names, kept) if k])


@dataclass(frozen=True)
class Features:
    """A test's features.

    attrs: slots (S, D) and bands (S, 2), where known. record: what made the features. labels: the user's names,
    sources by the names of the images. several: further images of the queries, for --multi_query.
    """

    query: Part
    gallery: Part
    attrs: dict[str, Any]
    record: Record = UNKNOWN
    labels: Labels = field(default_factory=Labels)
    several: Part | None = None


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths relative to the folder that all have in common, with forward slashes."""
    root = common_folder(paths)
    return [Path(os.path.relpath(p, root)).as_posix() for p in paths]


def common_folder(paths: Sequence[str]) -> str:
    """The absolute path of the folder that all paths have in common."""
    return os.path.commonpath({os.path.dirname(os.path.abspath(p)) for p in paths})


def read_features(path: str | Path, several: bool = False) -> Features:
    """The features in a file. Gallery rows with pid -1 are junk and left out.

    .h5: ours. .npz: query_features, query_pids, query_camids and the same for gallery; without camids there are no
    cameras. .mat: layumi's, query_f, query_label, query_cam, ... several: read also the file SEVERAL beside it, where
    there is one. Raises InputError naming file and entry.
    """
    path = Path(path)
    readers = {".h5": read_h5, ".npz": read_npz, ".mat": read_mat}
    if path.suffix not in readers:
        raise InputError(f"{path}: type {path.suffix or 'unknown'}; expected a features file {', '.join(readers)}")
    if not path.is_file():
        raise MissingInput(f"features file {path} does not exist; evaluate.py writes one")
    try:
        sides, attrs = readers[path.suffix](path)
        labels = read_labels(path) if path.suffix == ".h5" else Labels()
    except KeyError as e:
        raise InputError(f"{path}: {e.args[0]}; is it a features file?") from e
    except UNREADABLE as e:
        raise InputError(f"{path} cannot be read: {e}. It is cut short or damaged; create it again") from e
    query, gallery = (checked(path, side, *sides[side]) for side in ("query", "gallery"))
    widths = [side.features.shape[1] for side in (query, gallery)]
    if widths[0] != widths[1]:
        raise InputError(
            f"{path}: query features are {widths[0]} wide, gallery features {widths[1]}; extract both with one model"
        )
    if (gallery.pids == -1).any():
        gallery = gallery.where(gallery.pids != -1)
    ours = attrs.keys() & {"record", "weights"}  # without a record: made by an older version
    record = read_record(path) if ours else Record(features=sha256(path))
    attrs.pop("record", None)
    more = read_several(path.with_name(SEVERAL), record) if several else None
    return Features(query, gallery, attrs, record, labels, more)


def read_npz(path: Path):
    """({side: (features, pids, camids or None, names or None)}, {})."""
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as f:
        sides = {}
        for side in ("query", "gallery"):
            names = f.get(f"{side}_names")
            names = None if names is None else names.astype(str).tolist()
            sides[side] = (f[f"{side}_features"], f[f"{side}_pids"], f.get(f"{side}_camids"), names)
    return sides, {}


def read_mat(path: Path):
    """As read_npz; without names. Raises KeyError for a missing entry, ValueError for a damaged file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        f = loadmat(path)
    except MatReadError as e:
        raise ValueError(str(e)) from e
    sides = {}
    for side in ("query", "gallery"):
        names = [f"{side}_{part}" for part in ("f", "label", "cam")]
        if absent := [name for name in names if name not in f]:
            raise KeyError(f"{absent[0]} is not in the file")
        features, pids, camids = (f[name] for name in names)
        sides[side] = (features, pids.ravel(), camids.ravel(), None)
    return sides, {}


def read_several(path: Path, record: Record) -> Part | None:
    """The further images of the queries, None where the file does not exist. Raises InputError for other features."""
    if not path.is_file():
        return None
    try:
        sides, _ = read_h5(path)
        more = checked(path, "query", *sides["query"])
    except (KeyError, *UNREADABLE) as e:
        raise InputError(f"{path} cannot be read: {e}. It is cut short or damaged; delete it and evaluate again") from e
    if replace(read_record(path), content=record.content) != record:
        raise InputError(f"{path} has features of other weights or settings; delete it and evaluate again")
    return more


def checked(path: Path, side: str, features, pids, camids, names) -> Part:
    """One side, with the shapes and values that evaluation relies on. Raises InputError."""
    if features.ndim != 2 or features.dtype.kind not in "fiu" or not features.shape[1]:
        raise InputError(
            f"{path}: {side} features have shape {features.shape} and type {features.dtype}; expected (images, width)"
        )
    for name, values in (("pids", pids), ("camids", camids), ("names", names)):
        if values is not None and (np.ndim(values) != 1 or len(values) != len(features)):
            raise InputError(f"{path}: {len(features)} {side} features, but {name} of shape {np.shape(values)}")
    if features.dtype not in (np.float16, np.float32):
        with np.errstate(over="ignore"):  # becomes infinite, which is refused below
            features = features.astype(np.float32)
    for i in range(0, len(features), ROWS):
        bad = np.flatnonzero(~(np.abs(features[i : i + ROWS]) < LARGEST).all(1))
        if len(bad):
            raise InputError(
                f"{path}: {side} feature row {i + bad[0]} has NaN, infinite or too large values; extract it again"
            )
    names = [str(i) for i in range(len(features))] if names is None else names
    return Part(np.ascontiguousarray(features), np.asarray(pids), camids, names)
