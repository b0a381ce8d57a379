"""The HDF5 features file: created with room for every row, filled in place, read back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from reid.errors import InputError
from reid.files import reserve

ROWS = 1 << 12  # checked or converted at once
LABELS, ROOM = 300, 1 << 20  # bytes of an image's labels in a file, and of all else there, rather too many


def create(path: Path, attrs: dict, labels: dict, shape: tuple[int, int], dtype: str) -> None:
    """A features file whose rows are allocated and zero; its rows are then written in place, so that the HDF5
    structure is complete from the start and a kill cannot damage it."""
    try:
        with new_h5(path, shape[0] * (shape[1] * np.dtype(dtype).itemsize + LABELS)) as f:
            for name, values in labels.items():
                f.create_dataset(name, data=values, dtype=h5py.string_dtype() if isinstance(values, list) else None)
            f.attrs.update(attrs)
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype))
            h5py.h5d.create(f.id, b"features", kind, space, layout)
        reserve(path, path.stat().st_size)  # on a disk that fills up, rows written in place are a bus error
    except OSError:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def new_h5(path: Path, size: int) -> Iterator[h5py.File]:
    """An HDF5 file for which there is room: of what it cannot write, h5py cannot rid itself and crashes later. Raises
    OSError."""
    path.touch()
    reserve(path, size + ROOM)
    with h5py.File(path, "w") as f:
        yield f


def open_rows(path: Path) -> np.memmap:
    with h5py.File(path, "r") as f:
        data = f["features"]
        return np.memmap(path, data.dtype, "r+", data.id.get_offset(), data.shape)


def count_written(rows: np.ndarray) -> int:
    """Rows before the first that is not of unit length: one not yet written is zero."""
    for i in range(0, len(rows), ROWS):
        with np.errstate(over="ignore", invalid="ignore"):
            unit = np.abs(np.square(rows[i : i + ROWS], dtype=np.float32).sum(1) - 1) < 2e-3
        if not unit.all():
            return i + int(np.argmin(unit))
    return len(rows)


def same_header(path: Path, attrs: dict, labels: dict, dtype: str) -> bool:
    """Whether a readable features file at `path` is of these images and settings."""
    try:
        with h5py.File(path, "r") as f:
            return (
                f["features"].dtype == dtype
                and all(key in f.attrs and f.attrs[key] == value for key, value in attrs.items())
                and all(
                    np.array_equal(f[k].asstr()[:] if isinstance(v, list) else f[k][:], v) for k, v in labels.items()
                )
            )
    except (OSError, KeyError, TypeError, ValueError):
        return False


def is_features(path: Path) -> bool:
    """Whether a file can be read as HDF5 and says that it is a features file of ours."""
    try:
        with h5py.File(path, "r") as f:
            return "slots" in f.attrs
    except OSError:
        return False


def read_h5(path: Path):
    with h5py.File(path, "r") as f:
        subset = f["subset"].asstr()[:]
        camids = f["camids"][:] if "camids" in f else None
        names, pids, data = f["names"].asstr()[:], f["pids"][:], f["features"]
        if not isinstance(data, h5py.Dataset):
            raise InputError(f"{path}: 'features' is a group, expected one array (M, F)")
        if data.ndim != 2 or not len(data) == len(subset) == len(names) == len(pids):
            raise InputError(f"{path}: features have shape {data.shape}, but there are {len(subset)} subsets, "
                             f"{len(names)} names and {len(pids)} pids")  # fmt: skip
        sides = {}
        for side in ("query", "gallery"):
            rows = np.flatnonzero(subset == side)
            first = rows[0] if len(rows) else 0
            run = np.array_equal(rows, np.arange(first, first + len(rows)))
            values = data[first : first + len(rows)] if run else data[:][rows]
            sides[side] = (values, pids[rows], None if camids is None else camids[rows], names[rows].tolist())
        return sides, {k: v.tolist() if isinstance(v, np.generic | np.ndarray) else v for k, v in f.attrs.items()}
