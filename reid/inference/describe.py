"""Images to descriptors, in memory or into a features file."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from reid.evaluation.store import count_written, create, open_rows, same_header
from reid.files import locked, writing
from reid.processes import from_first, gather_rows, wait, world
from reid.signals import signals_noted


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


def content_of(images: Sequence[Image]) -> str:
    """SHA-256 over the bytes of all files: an image that was replaced is another one, whatever its name."""
    total = hashlib.sha256()
    for image in images:
        with open(image.path, "rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()
