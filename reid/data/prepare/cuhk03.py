"""CUHK03: images inside cuhk-03.mat (MATLAB v7.3), split by the 767/700 protocol or by the 20 classic splits; or
the CUHK03-NP folders, which are of Market-1501's form."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
import scipy.io
from PIL import Image as PILImage
from tqdm import tqdm

from reid.data.prepare import market
from reid.data.prepare.archive import MAX_IMAGE, Source
from reid.data.prepare.plan import Plan, Split
from reid.errors import InputError

UNREADABLE = (OSError, KeyError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError, RuntimeError)


def plan(source: Source, kind: str) -> Plan:
    """The 767/700 protocol. kind: boxes 'labeled' by hand or 'detected'."""
    mat = find(source, "cuhk-03.mat")
    if mat is None:
        return market.plan(source, 2, below=kind)
    name = f"cuhk03_new_protocol_config_{kind}.mat"
    config = find(source, name) or next(
        (p for p in (source.path / name, source.path.parent / name) if p.is_file()), None
    )
    if config is None:
        raise InputError(f"{source.path} has cuhk-03.mat but no {name}; put that file beside it, or prepare "
                         f"cuhk03_classic{'_detected' if kind == 'detected' else ''}, which needs none")  # fmt: skip
    try:
        protocol = scipy.io.loadmat(config)
        files = [str(cell.item()) for cell in protocol["filelist"].ravel()]
        pids, cameras = (protocol[key].ravel().astype(int).tolist() for key in ("labels", "camId"))
        rows = [(protocol[f"{s}_idx"].ravel().astype(int) - 1).tolist() for s in ("train", "query", "gallery")]
        images = [(file, pid, camera - 1) for file, pid, camera in zip(files, pids, cameras, strict=True)]
        assert_rows(rows, images)
    except Exception as e:  # for a damaged file scipy raises MatReadError, ValueError, zlib.error and others
        raise InputError(f"{config} is no readable protocol file of CUHK03 ({e}); get it again") from e
    cells = {file: cell for file, _, _, cell in cells_of(mat, kind)}
    absent = [file for file in files if file not in cells]
    if absent or len(files) != len(cells):
        raise InputError(f"{config} does not belong to the {kind} images of {mat}: it lists {len(files):,} images, of "
                         f"which {len(absent):,} are not among the {len(cells):,} there {absent[:3]}")  # fmt: skip
    return Plan(images, [Split(*rows)], 2, place=lambda wanted: place(mat, cells, wanted))


def assert_rows(rows: list[list[int]], images: list) -> None:
    if not all(0 <= row < len(images) for subset in rows for row in subset):
        raise ValueError(f"an index is outside 1 to {len(images)}")
    if not all(pid >= 0 and camera in (0, 1) for _, pid, camera in images):
        raise ValueError("a label is negative or a camera is not 1 or 2")


def plan_classic(source: Source, kind: str) -> Plan:
    """The 20 classic splits: 100 test identities each, all their images being query and gallery."""
    mat = find(source, "cuhk-03.mat")
    if mat is None:
        raise market.missing_part(source, "cuhk-03.mat", ["cuhk-03.mat (cuhk03_release.zip)"])
    images: list[tuple[str, int, int]] = []
    cells: dict[str, h5py.Reference] = {}
    numbers: dict[tuple[int, int], int] = {}  # (camera pair, identity in it) -> pid, from 1 as the new protocol has it
    for file, person, camera, cell in cells_of(mat, kind):
        images.append((file, numbers.setdefault(person, len(numbers) + 1), camera))
        cells[file] = cell
    splits = []
    for test in test_sets(mat):
        pids = {numbers.get(person) for person in test}
        rows = [i for i, image in enumerate(images) if image[1] in pids]
        splits.append(Split([i for i, image in enumerate(images) if image[1] not in pids], rows, rows))
    return Plan(images, splits, 2, note="classic protocol: all test images are query and gallery",
                place=lambda wanted: place(mat, cells, wanted))  # fmt: skip


def find(source: Source, file: str) -> Path | None:
    """A file of the source as a path; members of archives are extracted."""
    names = [name for name in source.sizes if PurePosixPath(name).name == file]
    return source.file(names[0]) if names else None


def cells_of(mat: Path, kind: str) -> Iterator[tuple[str, tuple[int, int], int, h5py.Reference]]:
    """(name, (pair, identity) from 1, camera 0 or 1, reference to the pixels) of each image: five camera pairs, M
    identities by 10 cells each, 1-5 of the first camera and 6-10 of the second; some cells are empty."""
    try:
        with h5py.File(mat, "r") as file:
            for pair, reference in enumerate(file[kind][:].ravel(), 1):
                for identity, row in enumerate(file[reference][:].T, 1):
                    for number, cell in enumerate(row, 1):
                        if file[cell].ndim == 3:
                            view = 1 if number <= 5 else 2
                            name = f"{pair}_{identity:03d}_{view}_{number:02d}.png"
                            yield name, (pair, identity), view - 1, cell
    except UNREADABLE as e:
        raise InputError(f"{mat} is no readable cuhk-03.mat ({e}); was the download cut short? Get it again") from e


def test_sets(mat: Path) -> list[list[tuple[int, int]]]:
    """(camera pair, identity), both from 1, of the test identities of each split."""
    try:
        with h5py.File(mat, "r") as file:
            return [[(int(a), int(b)) for a, b in file[ref][:].T] for ref in file["testsets"][:].ravel()]
    except UNREADABLE as e:
        raise InputError(f"{mat}: testsets cannot be read ({e}); get the file again") from e


def place(mat: Path, cells: dict[str, h5py.Reference], wanted: dict[str, list[Path]]) -> None:
    """Writes each image as PNG, which loses nothing. The file stores (channel, column, row)."""
    with h5py.File(mat, "r") as file:
        for name, paths in tqdm(wanted.items(), "writing", unit=" images", disable=None):
            try:
                if file[cells[name]].size > MAX_IMAGE:
                    raise ValueError(f"{file[cells[name]].shape} is no image of a person")
                image = PILImage.fromarray(np.ascontiguousarray(file[cells[name]][:].T))
            except UNREADABLE as e:
                raise InputError(f"{mat}: image {name} cannot be read ({e}); get the file again") from e
            for path in paths:
                image.save(path)
