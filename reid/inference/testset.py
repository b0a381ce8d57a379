"""Extracts the features of a dataset's test images, also with a covered band."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from reid.data.labels import Labels
from reid.data.loader import ImageStore, in_order
from reid.data.records import Dataset, Image, content_of
from reid.data.transforms import cover
from reid.evaluation.features import Features, Part, read_features, read_several
from reid.evaluation.record import Record
from reid.inference.describe import extract, extract_file, with_bands
from reid.inference.engines import Engine
from reid.processes import World, part_of


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """An engine and the settings with which test images become features.

    weights: hex SHA-256 of the file. precision: as resolved. calibration: hex digest of int8's images. bands: the part
    of the image that each slot describes, where known. here: this process among all that extract together; each
    decodes its part of every batch.
    """

    engine: Engine
    bands: Any
    weights: str
    h: int
    w: int
    precision: str
    batch_size: int
    num_workers: int
    here: World
    flip: bool = True
    calibration: str | None = None

    def record_of(self, name: str, split: int, dataset: Dataset) -> Record:
        """The record of a dataset's uncovered test images. Only rank 0 computes the digests."""
        first = self.here.first
        return Record(
            dataset=name,
            split=split,
            fingerprint=dataset.fingerprint if first else None,
            content=content_of([*dataset.query, *dataset.gallery]) if first else None,
            weights=self.weights,
            h=self.h,
            w=self.w,
            flip=self.flip,
            precision=self.precision,
            engine=self.engine.name,
            calibration=self.calibration,
            covered=0,
        )

    def store(self, images: list[Image]) -> ImageStore:
        return ImageStore(images, self.h, self.w, self.num_workers, device=self.engine.device)

    def batches(self, store: ImageStore, start: int, stop: int) -> Iterator[Tensor]:
        """This process's part of each batch of images start .. stop."""
        rows = in_order(stop, self.batch_size, start)
        return store.batches([part_of(batch, self.here) for batch in rows])

    def features(self, path: Path, dataset: Dataset, record: Record) -> Features | None:
        """The features in the file `path`, which is completed or reused; None on ranks other than 0."""
        sides = {"query": dataset.query, "gallery": dataset.gallery}
        self.write(path, sides, record, labels_by_path(dataset))
        return read_features(path) if self.here.first else None

    def several(self, path: Path, dataset: Dataset, record: Record) -> Part | None:
        """The features of the dataset's further query images, in the file `path`; None on ranks other than 0."""
        first = self.here.first
        record = replace(record, content=content_of(dataset.multi_query) if first else None)
        self.write(path, {"query": dataset.multi_query}, record, Labels())
        return read_several(path, record) if first else None

    def write(self, path: Path, sides: dict[str, list[Image]], record: Record, labels: Labels) -> None:
        """Completes or reuses a features file."""
        store = self.store([image for images in sides.values() for image in images])

        def load(start: int) -> Iterator[Tensor]:
            return self.batches(store, start, len(store.paths))

        extract_file(path, self.engine, load, sides, record, labels, **with_bands(self.bands))

    def covered(self, features: Features | None, dataset: Dataset, band: int) -> Features | None:
        """The features with a band of each query image covered; None on ranks other than 0."""
        count = len(dataset.query)
        batches = self.batches(self.store(dataset.query), 0, count)
        images = (cover(pixels, band) for pixels in batches)
        found = extract(self.engine, images, count)
        if features is None:
            return None
        query = replace(features.query, features=found)
        return replace(features, query=query, record=replace(features.record, covered=band))


def labels_by_path(dataset: Dataset) -> Labels:
    """The labels of a dataset, with the sources of its test images by path."""
    labels, folder = dataset.labels, dataset.folder / "images"
    files = {
        image.path: Path(image.path).relative_to(folder).as_posix() for image in (*dataset.query, *dataset.gallery)
    }
    tracks = {path: labels.tracks[file] for path, file in files.items() if file in labels.tracks}
    return replace(labels, sources={path: labels.source(file) for path, file in files.items()}, tracks=tracks)
