"""Images to descriptors, in memory or into a features file."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from reid.data.records import Image
from reid.data.transforms import normalise
from reid.device import autocast
from reid.errors import InputError, Interrupted
from reid.evaluation.features import short_names
from reid.evaluation.record import Record
from reid.evaluation.store import FeaturesWriter
from reid.files import locked
from reid.processes import from_first, gather_rows, wait, world
from reid.signals import signals_noted


def describe(
    model: nn.Module, batches: Iterable[Tensor], device, flip: bool = True, precision: str = "fp32"
) -> Iterator[Tensor]:
    """Descriptors (n, S, D) of batches of uint8 images (n, 3, H, W), float32 on `device`.

    A descriptor is the mean of the features of image and mirror image (with `flip`), scaled so that its S x D
    numbers have length 1. Each of several processes passes its part of every batch and gets the whole.
    """
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
    with progress(total) as bar:
        for features in describe(model, batches, device, flip, precision):
            rows.append(features.flatten(1).cpu())
            bar.update(len(features))
    return torch.cat(rows).numpy()


def extract_file(
    path: Path,
    model: nn.Module,
    load: Callable[[int], Iterable[Tensor]],
    images: Mapping[str, Sequence[Image]],
    record: Record,
    device,
    **attrs: Any,
) -> None:
    """Writes a features file while it extracts, with the flip and precision of `record`.

    load(start) returns batches of uint8 images, from number `start` on. images: {"query": [...], "gallery": [...]}, in
    this order. attrs: further attributes of the file. A later call with the same images and record continues an
    interrupted file, and reuses a complete one. Only rank 0 writes; the other
    ranks ignore the path, the digests in `record` and attrs.
    """
    flip, precision = record.flip, record.precision
    assert flip is not None and precision is not None, "an extraction knows its flip and precision"
    listed = [image for side in images.values() for image in side]
    total, first = len(listed), world().first
    labels = {
        "names": short_names([image.path for image in listed]),
        "pids": np.array([image.pid for image in listed], np.int64),
        "camids": np.array([image.camid for image in listed], np.int64),
        "subset": [name for name, side in images.items() for _ in side],
    }
    if hasattr(model, "bands"):
        attrs["bands"] = model.bands
    writer = FeaturesWriter(path, record, labels)
    with locked(path) if first else nullcontext():  # a second identical command waits and finds the work done
        done = from_first(writer.count_done() if first else 0, device)
        batches = load(done) if done < total else ()
        with progress(total, done) as bar, signals_noted() as received:
            for features in describe(model, batches, device, flip, precision):
                if first:
                    rows = features.flatten(1).cpu().numpy()
                    writer.write(rows, done, attrs | {"slots": features.shape[1:]})
                done += len(features)
                bar.update(len(features))
                if from_first(len(received), device):
                    raise Interrupted(f"stopped after {done} of {total} images; run the same command again to continue")
        if done != total:
            raise InputError(f"expected {total} images, but got only {done}")
        if first:
            writer.finish()
    wait()


def progress(total: int, done: int = 0) -> tqdm:
    hidden = None if world().first else True  # None: shown only in a terminal
    return tqdm(total=total, initial=done, desc="features", unit=" images", disable=hidden)


def content_of(images: Sequence[Image]) -> str:
    """Hex SHA-256 over the bytes of all files; it changes when an image is replaced under the same name."""
    total = hashlib.sha256()
    for image in images:
        with open(image.path, "rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()
