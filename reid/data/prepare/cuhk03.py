"""CUHK03, with the 767/700 protocol or the 20 classic splits.

The images are inside cuhk-03.mat (MATLAB v7.3). CUHK03-NP has the folders of Market-1501.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
import scipy.io
from PIL import Image as PILImage
from tqdm import tqdm

from reid.data.prepare import market
from reid.data.prepare.archive import MAX_IMAGE, Source, damage
from reid.data.prepare.plan import ImageRow, Plan, Split
from reid.errors import InputError

MAT = "cuhk-03.mat"
# what h5py and NumPy raise for a file of another form, besides what damaged files raise
MALFORMED = (LookupError, TypeError, AttributeError)
Cells = dict[str, h5py.Reference]  # where the pixels of each image are


def plan(source: Source, kind: str) -> Plan:
    """The 767/700 protocol. kind: boxes "labeled" by hand or "detected"."""
    mat = find(source, MAT)
    if mat is None:
        return market.plan(source, 2, below=kind)
    config = find_config(source, kind)
    images, split = read_protocol(config)
    cells = {file: cell for file, _, _, cell in cells_of(mat, kind)}
    absent = [file for file, _, _ in images if file not in cells]
    if absent or len(images) != len(cells):
        raise InputError(
            f"{config} does not belong to the {kind} images of {mat}: it lists {len(images):,} images, of "
            f"which {len(absent):,} are not among the {len(cells):,} there {absent[:3]}"
        )
    return Plan(images, [split], 2, place=partial(place, mat, cells))


def find_config(source: Source, kind: str) -> Path:
    """The protocol file, in the source or beside it."""
    name = f"cuhk03_new_protocol_config_{kind}.mat"
    for path in (find(source, name), source.path / name, source.path.parent / name):
        if path and path.is_file():
            return path
    classic = "cuhk03_classic" + ("_detected" if kind == "detected" else "")
    raise InputError(
        f"{source.path} has {MAT} but no {name}; put that file beside it, or prepare {classic}, which does not need it"
    )


def read_protocol(config: Path) -> tuple[list[ImageRow], Split]:
    try:
        protocol = scipy.io.loadmat(config)
        files = [str(cell.item()) for cell in protocol["filelist"].ravel()]
        pids, cameras = (protocol[key].ravel().astype(int).tolist() for key in ("labels", "camId"))
        images = [(file, pid, cam - 1) for file, pid, cam in zip(files, pids, cameras, strict=True)]
        keys = ("train_idx", "query_idx", "gallery_idx")
        rows = [(protocol[key].ravel().astype(int) - 1).tolist() for key in keys]
        if not all(0 <= row < len(images) for subset in rows for row in subset):
            raise ValueError(f"an index is outside 1 to {len(images)}")
        if not all(pid >= 0 and camera in (0, 1) for _, pid, camera in images):
            raise ValueError("a label is negative or a camera is not 1 or 2")
        return images, Split(*rows)
    except Exception as e:  # scipy raises MatReadError, zlib.error and others
        raise InputError(f"{config} is not a readable protocol file of CUHK03 ({e}); get it again") from e


def plan_classic(source: Source, kind: str) -> Plan:
    """The 20 classic splits of 100 test identities; all their images are query and gallery."""
    mat = find(source, MAT)
    if mat is None:
        raise market.missing_part(source, MAT, [f"{MAT} (cuhk03_release.zip)"])
    images: list[ImageRow] = []
    cells: Cells = {}
    pids: dict[tuple[int, int], int] = {}  # (pair, identity) -> pid from 1, as in the new protocol
    for file, person, camera, cell in cells_of(mat, kind):
        images.append((file, pids.setdefault(person, len(pids) + 1), camera))
        cells[file] = cell
    splits = []
    for people in test_sets(mat):
        chosen = {pids.get(person) for person in people}
        test = [row for row, image in enumerate(images) if image[1] in chosen]
        train = [row for row, image in enumerate(images) if image[1] not in chosen]
        splits.append(Split(train, test, test))
    note = "classic protocol: all test images are query and gallery"
    return Plan(images, splits, 2, note=note, place=partial(place, mat, cells))


def find(source: Source, file: str) -> Path | None:
    """A file of the source as a path; members of archives are extracted."""
    names = [name for name in source.sizes if PurePosixPath(name).name == file]
    return source.file(names[0]) if names else None


def cells_of(mat: Path, kind: str) -> Iterator[tuple[str, tuple[int, int], int, h5py.Reference]]:
    """(name, (pair, identity) from 1, camera from 0, reference to the pixels) of each image.

    The file has five camera pairs of M identities by 10 cells: 1-5 from the first camera
    and 6-10 from the second. Some cells are empty.
    """
    with damage(mat, f"{kind} images", MALFORMED), h5py.File(mat, "r") as file:
        for pair, reference in enumerate(file[kind][:].ravel(), 1):
            for identity, row in enumerate(file[reference][:].T, 1):
                for number, cell in enumerate(row, 1):
                    if file[cell].ndim == 3:
                        view = 1 if number <= 5 else 2
                        name = f"{pair}_{identity:03d}_{view}_{number:02d}.png"
                        yield name, (pair, identity), view - 1, cell


def test_sets(mat: Path) -> list[list[tuple[int, int]]]:
    """(pair, identity), both from 1, of the test identities of each split."""
    with damage(mat, "testsets", MALFORMED), h5py.File(mat, "r") as file:
        return [[(int(a), int(b)) for a, b in file[ref][:].T] for ref in file["testsets"][:].ravel()]


def place(mat: Path, cells: Cells, wanted: dict[str, list[Path]]) -> None:
    """Writes each image as PNG, which is lossless. The file stores (channel, column, row)."""
    with h5py.File(mat, "r") as file:
        for name, paths in tqdm(wanted.items(), "writing", unit=" images", disable=None):
            with damage(mat, f"image {name}", MALFORMED):
                cell = file[cells[name]]
                if cell.size > MAX_IMAGE:
                    raise ValueError(f"{cell.shape} is too large for a cropped image")
                image = PILImage.fromarray(np.ascontiguousarray(cell[:].T))
            for path in paths:
                image.save(path)
