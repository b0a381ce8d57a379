"""Images -> descriptors, and the files they are kept in: our features.h5, anybody's .npz, layumi's .mat."""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from reid.data.records import Image
from reid.data.transforms import normalise
from reid.errors import InputError, Interrupted, MissingInput
from reid.processes import from_first, gather_rows, signals_noted, wait, world
from reid.runs import autocast, locked, writing

ROWS = 1 << 12  # checked or converted at once
UNREADABLE = (OSError, ValueError, EOFError, TypeError, AttributeError, IndexError, BadZipFile, zlib.error,
              NotImplementedError)  # what h5py, NumPy and SciPy make of damage  # fmt: skip
LARGEST = np.float32(1e15)  # of a feature's numbers: their squares' sums are finite
LABELS, ROOM = 300, 1 << 20  # bytes of an image's labels in a file, and of all else there, rather too many


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
    """A test's features. attrs says what made them: slots (S, D), bands (S, 2), flip, weights (SHA-256), dataset
    (fingerprint)."""

    query: Part
    gallery: Part
    attrs: dict[str, Any]


def describe(
    model: nn.Module, batches: Iterable[Tensor], device, flip: bool = True, precision: str = "fp32"
) -> Iterator[Tensor]:
    """Descriptors (n, S, D) of batches of uint8 images (n, 3, H, W): the mean of the features of image and mirror
    image (with `flip`), scaled so that the S x D numbers of an image have length 1. float32 on `device`. Of several
    processes each gives its part of every batch, and all get the whole."""
    model.eval()
    device = torch.device(device)
    for batch in batches:
        with torch.inference_mode(), autocast(precision, device):
            images = normalise(batch.to(device))
            features = model(images).float()
            if flip:
                features = (features + model(images.flip(3)).float()) / 2
            length = features.flatten(1).norm(dim=1)
            if not bool((length.isfinite() & (length > 0)).all()):
                raise InputError("the model gave features that are not finite, or all zero; are the weights damaged?")
            yield gather_rows(features / length[:, None, None])


def extract(
    model: nn.Module, batches: Iterable[Tensor], total: int, device, flip: bool = True, precision: str = "fp32"
) -> np.ndarray:
    """(total, S x D) float32 unit-length descriptors of `total` images."""
    rows = []
    with tqdm(total=total, desc="features", unit=" images", disable=None) as bar:
        for features in describe(model, batches, device, flip, precision):
            rows.append(features.flatten(1).cpu())
            bar.update(len(features))
    return torch.cat(rows).numpy()


def extract_file(
    path: Path,
    model: nn.Module,
    load: Callable[[int], Iterable[Tensor]],
    query: Sequence[Image],
    gallery: Sequence[Image],
    device,
    weights: str,
    dataset: str,
    flip: bool = True,
    precision: str = "fp32",
    dtype: str = "float32",
    **attrs: Any,
) -> None:
    """Writes features.h5 while it extracts.

    load(start) gives batches of uint8 images from number `start` on, query before gallery. `weights` and `dataset`
    are the hex SHA-256 of both; attrs are further settings on which the features depend. The work stands in
    <path>.partial until it is whole; a later call with the same images and settings goes on from there, and takes
    what is whole as it is.
    """
    images = [*query, *gallery]
    header = {"flip": flip, "weights": weights, "dataset": dataset, "precision": precision, **attrs}
    labels = {
        "names": short_names([image.path for image in images]),
        "pids": np.array([image.pid for image in images], np.int64),
        "camids": np.array([image.camid for image in images], np.int64),
        "subset": ["query"] * len(query) + ["gallery"] * len(gallery),
    }
    first = world().first  # of several processes, that one writes
    with locked(path) if first else nullcontext():  # two commands of the same work: the second finds it done
        fill_file(path, model, load, header, labels, device, flip, precision, dtype)
    wait()


def fill_file(path: Path, model: nn.Module, load, header: dict, labels: dict, device, flip, precision, dtype) -> None:
    """extract_file's work, alone at `path`."""
    total, first = len(labels["names"]), world().first
    partial = path.with_name(path.name + ".partial")
    rows, done = None, 0
    if first and same_header(path, header, labels, dtype):
        done = total
    elif first:
        rows = open_rows(partial) if same_header(partial, header, labels, dtype) else None
        done = 0 if rows is None else count_written(rows)
    done = from_first(done, device)
    bar = tqdm(total=total, initial=done, desc="features", unit=" images", disable=None if first else True)
    with bar, signals_noted() as received:
        for features in describe(model, load(done), device, flip, precision) if done < total else ():
            if first and rows is None:
                shape = (total, features[0].numel())
                bands = {"bands": model.bands} if hasattr(model, "bands") else {}  # of the body: reid/report/slots.py
                with writing(path):
                    create(partial, header | {"slots": features.shape[1:]} | bands, labels, shape, dtype)
                rows = open_rows(partial)
            if first:
                rows[done : done + len(features)] = features.flatten(1).cpu().numpy()
            done += len(features)
            bar.update(len(features))
            if from_first(len(received), device):
                raise Interrupted(f"stopped after {done} of {total} images; the same command goes on from there")
    if done != total:
        raise InputError(f"{total} images to extract, but only {done} came")
    if rows is not None:
        rows.flush()
        os.replace(partial, path)


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths below the folder that all have in common."""
    root = common_folder(paths)
    return [os.path.relpath(p, root) for p in paths]


def content_of(images: Sequence[Image]) -> str:
    """SHA-256 over the bytes of all files: an image that was replaced is another one, whatever its name."""
    total = hashlib.sha256()
    for image in images:
        with open(image.path, "rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()


def common_folder(paths: Sequence[str]) -> str:
    """Absolute."""
    return os.path.commonpath({os.path.dirname(os.path.abspath(p)) for p in paths})


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


def reserve(path: Path, size: int) -> None:
    """Makes a file at least `size` bytes long, and sure of its place on the disk, or raises OSError."""
    if hasattr(os, "posix_fallocate"):  # not on every system
        with open(path, "rb+") as f:
            os.posix_fallocate(f.fileno(), 0, size)


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
        if isinstance(e, InputError):
            raise
        raise InputError(f"{path} cannot be read: {e}. It is cut short or damaged; make it again") from e
    parts = [checked(path, side, *values) for side, values in sides.items()]
    if parts[0].features.shape[1] != parts[1].features.shape[1]:
        raise InputError(
            f"{path}: query features are {parts[0].features.shape[1]} wide, gallery features "
            f"{parts[1].features.shape[1]}; both must come from one model"
        )
    if (parts[1].pids == -1).any():
        parts[1] = parts[1].where(parts[1].pids != -1)
    return Features(*parts, attrs)


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


def read_npz(path: Path):
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as f:
        sides = {}
        for side in ("query", "gallery"):
            camids, names = f.get(f"{side}_camids"), f.get(f"{side}_names")
            names = None if names is None else names.astype(str).tolist()
            sides[side] = (f[f"{side}_features"], f[f"{side}_pids"], camids, names)
    return sides, {}


def read_mat(path: Path):
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        f = loadmat(path)
    except MatReadError as e:
        raise ValueError(str(e)) from e
    sides = {}
    for side in ("query", "gallery"):
        for key in (f"{side}_f", f"{side}_label", f"{side}_cam"):
            if key not in f:
                raise KeyError(f"{key} is not in the file")
        sides[side] = (f[f"{side}_f"], f[f"{side}_label"].ravel(), f[f"{side}_cam"].ravel(), None)
    return sides, {}


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
