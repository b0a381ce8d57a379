"""Images to descriptors, in memory or into a features file."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from reid.data.labels import Labels
from reid.data.records import Image
from reid.errors import InputError, Interrupted
from reid.evaluation.features import short_names
from reid.evaluation.record import Record
from reid.evaluation.store import FeaturesWriter, label_rows
from reid.files import locked
from reid.inference.engines import Engine
from reid.processes import from_first, gather_rows, wait, world
from reid.signals import signals_noted


def describe(engine: Engine, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Descriptors (n, S, D) of batches of uint8 images (n, 3, H, W), float32 of unit length.

    With several processes each gives its part of every batch, and all get the whole. Raises InputError
    for descriptors that are not finite, or zero.
    """
    for batch in batches:
        found = engine(batch)
        length = found.flatten(1).norm(dim=1)
        if not bool(((length - 1).abs() < 1e-2).all()):
            raise InputError("the model gave features that are not finite, or all zero; are the weights damaged?")
        yield gather_rows(found)


def extract(engine: Engine, batches: Iterable[Tensor], total: int) -> np.ndarray:
    """(total, S x D) float32 unit-length descriptors of `total` images."""
    rows = []
    with progress(total) as bar:
        for features in describe(engine, batches):
            rows.append(features.flatten(1).cpu())
            bar.update(len(features))
    return torch.cat(rows).numpy()


def extract_file(
    path: Path,
    engine: Engine,
    load: Callable[[int], Iterable[Tensor]],
    images: Mapping[str, Sequence[Image]],
    record: Record,
    labels: Labels | None = None,
    **attrs: Any,
) -> None:
    """Writes a features file while it extracts, with the engine that `record` describes.

    load(start) returns batches of uint8 images, from number `start` on. images: {"query": [...], "gallery": [...]}, in
    this order. labels: the user's names, sources by path. attrs: further attributes of the file. A later
    call with the same images and record continues an interrupted file, and reuses a complete one. Only rank 0 writes;
    the other ranks ignore the path, the digests in `record`, labels and attrs.
    """
    listed = [image for side in images.values() for image in side]
    total, first = len(listed), world().first
    paths = [image.path for image in listed]
    columns = {
        "names": short_names(paths),
        "pids": np.array([image.pid for image in listed], np.int64),
        "camids": np.array([image.camid for image in listed], np.int64),
        "subset": [name for name, side in images.items() for _ in side],
        **label_rows(labels or Labels(), paths),
    }
    writer = FeaturesWriter(path, record, columns)
    with locked(path) if first else nullcontext():  # a second identical command waits and finds the work done
        done = from_first(writer.count_done() if first else 0, engine.device)
        batches = load(done) if done < total else ()
        with progress(total, done) as bar, signals_noted() as received:
            for features in describe(engine, batches):
                if first:
                    rows = features.flatten(1).cpu().numpy()
                    writer.write(rows, done, attrs | {"slots": features.shape[1:]})
                done += len(features)
                bar.update(len(features))
                if from_first(len(received), engine.device):
                    raise Interrupted(f"stopped after {done} of {total} images; run the same command again to continue")
        if done != total:
            raise InputError(f"expected {total} images, but got only {done}")
        if first:
            writer.finish()
    wait()


def with_bands(bands: Any) -> dict[str, Any]:
    """The attribute of a features file for the part of the image that each slot describes."""
    return {} if bands is None else {"bands": bands}


def progress(total: int, done: int = 0) -> tqdm:
    hidden = None if world().first else True  # None: shown only in a terminal
    return tqdm(total=total, initial=done, desc="features", unit=" images", disable=hidden)
