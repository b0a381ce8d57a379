"""python -m reid extract: descriptors of any images."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from reid.commands.flags import add_flags, add_images_flags, given_flags
from reid.config import Config
from reid.data.images import ReadImages, list_images, read_images
from reid.data.labels import Labels
from reid.data.loader import in_order
from reid.device import find_hardware, set_up
from reid.errors import InputError
from reid.evaluation.features import common_folder, short_names
from reid.evaluation.record import Record, differences, read_record
from reid.evaluation.store import is_features, read_h5
from reid.files import atomic_file, writing
from reid.inference.describe import extract_file, with_bands
from reid.inference.engines import WORTH
from reid.inference.extractor import Extractor
from reid.inference.int8 import wanted_calibration
from reid.processes import connected, part_of, world


def add_arguments(parser) -> None:
    add_flags(parser, "extract", needs_weights=True)
    add_images_flags(parser)
    parser.add_argument("--out", required=True, help="write .h5, or .npz with features, names, pids and camids")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of other images or settings")


def main(arguments) -> int:
    out = Path(arguments.out)
    if out.suffix not in (".h5", ".npz") or out.is_dir():
        raise InputError(f"--out {out}: expected a file name ending in .h5 or .npz")
    if out.suffix == ".h5" and out.exists() and not is_features(out):
        raise InputError(f"--out {out}: this file is not a features file and is not replaced; give another name")
    if out.suffix == ".npz" and out.exists() and not arguments.overwrite:
        raise InputError(f"--out {out} already exists; give another name, or --overwrite")
    images, labels = list_images(arguments.images)
    extractor = open_extractor(arguments, len(images))
    with connected(extractor.device) as here:
        found = read_images(images, extractor.size, extractor.num_workers, extractor.device, arguments.skip_bad)
        with writing(out):
            if out.suffix == ".h5":
                if out.exists() and not arguments.overwrite:
                    refuse_other(out, record_of(extractor, found))
                extract_to(out, extractor, found, labels)
            else:
                extract_npz(out, extractor, found, labels)
    if here.first:
        print(f"{len(found.images)} descriptors in {out}")
    return 0


def open_extractor(arguments, count: int) -> Extractor:
    """The Extractor that the flags select, on its device, for `count` images."""
    config = Config(batch_sample=1, **given_flags(arguments))  # K is used only in training
    if len(config.gpus) > 1:
        raise InputError(f"--gpus {' '.join(map(str, config.gpus))}: this command uses one GPU; give one id")
    hardware = find_hardware(config.device, config.gpus)
    precision = set_up(hardware, config.precision, config.threads)
    weights = Path(config.pretrained_weights_dir)
    calibration = wanted_calibration(given_flags(arguments), precision, weights)
    few = config.engine == "auto" and count < WORTH and calibration is None
    return Extractor(
        weights,
        hardware.device,
        engine="torch" if few else config.engine,
        precision=calibration or precision,
        flip=not arguments.no_flip,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
    )


def record_of(extractor: Extractor, found: ReadImages) -> Record:
    height, width = extractor.size
    return Record(
        content=found.content,
        weights=extractor.sha256,
        h=height,
        w=width,
        flip=extractor.flip,
        precision=extractor.precision,
        engine=extractor.engine.name,
        calibration=extractor.calibration.digest if extractor.calibration else None,
    )


def refuse_other(path: Path, record: Record) -> None:
    """Raises InputError if the features file `path` has another record."""
    try:
        found = differences(read_record(path), record)
    except InputError:
        found = "by another version"
    if found:
        raise InputError(f"--out {path} has other features ({found}); give another name, or --overwrite")


def extract_to(path: Path, extractor: Extractor, found: ReadImages, labels: Labels) -> None:
    """Writes a features.h5 with all images as gallery. Continues an interrupted call with the same images.

    Connected processes each extract their part; rank 0 writes.
    """

    def load(start: int):
        batches = in_order(len(found.images), extractor.batch_size, start)
        return found.store.batches([part_of(rows, world()) for rows in batches])

    paths = [image.path for image in found.images]
    labels = replace(labels, sources=dict(zip(paths, short_names(paths))))
    attrs = {"folder": common_folder(paths), **with_bands(extractor.bands)}
    record = record_of(extractor, found)
    extract_file(path, extractor.engine, load, {"gallery": found.images}, record, labels, **attrs)


def extract_npz(path: Path, extractor: Extractor, found: ReadImages, labels: Labels) -> None:
    """Writes .npz through a temporary features.h5, because an .npz cannot be written row by row."""
    work = path.with_name(f".{path.name}.h5")
    extract_to(work, extractor, found, labels)
    if not world().first:
        return
    sides, attrs = read_h5(work)
    features, pids, camids, names = sides["gallery"]
    with atomic_file(path) as temporary, open(temporary, "wb") as f:
        if labels.given:
            attrs |= {"identities": [*labels.identities], "cameras": [*labels.cameras]}
        np.savez(f, features=features, pids=pids, camids=camids, names=np.array(names), **attrs)
    work.unlink()
