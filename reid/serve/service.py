"""What the server does, without HTTP: images to descriptors, answers, and changes of the gallery."""

import asyncio
import base64
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from reid.data.images import numbers_of
from reid.data.labels import Labels
from reid.data.loader import open_image, resized
from reid.errors import InputError
from reid.evaluation.pooling import pool
from reid.files import atomic_file, writing
from reid.gallery.store import Answers, Entries, Fingerprint, Listing, Only, Store
from reid.inference.describe import describe
from reid.inference.extractor import Extractor
from reid.report import slots
from reid.report.lists import thumbnail
from reid.serve.batches import Batches
from reid.serve.metrics import Metrics

logger = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow reads more, some of them with other programs
PATIENCE = 0.005  # seconds for which an incomplete batch waits
SEARCHES = 64  # in one pass over the gallery
LONGEST = 200  # characters of a name or label
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows they are not files
THUMBNAIL = (96, 60)  # height in pixels, quality


class Refused(InputError):
    """A request that cannot be fulfilled. status: of HTTP. The message is for the client and names no path."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What one request may need, and all together."""

    body: int = 32 << 20  # bytes
    pixels: int = 25_000_000  # of an image, by its header
    images: int = 16  # in a request
    top: int = 100  # answers per image
    seconds: float = 30.0  # for a request, with its transfer
    queue: int = 128  # images that wait for the model
    requests: int = 64  # at the same time


@dataclass(frozen=True)
class Setup:
    """How a gallery is served.

    root: folder of the entries' images, None: none are shown. keep: folder for the images of added entries, None: they
    are not kept. threshold: largest squared distance of a match, for the page.
    """

    limits: Limits = field(default_factory=Limits)
    root: Path | None = None
    keep: Path | None = None
    threshold: float | None = None

    @property
    def folders(self) -> list[Path]:
        """Where the images of entries may be."""
        return [folder for folder in (self.root, self.keep) if folder is not None]


class Query(NamedTuple):
    descriptor: np.ndarray  # (F,)
    top: int
    threshold: float
    only: Only


class New(NamedTuple):
    """Images to add. identity, camera: labels, "-1" where unknown."""

    names: list[str]
    contents: list[bytes]
    identity: str
    camera: str


class Service:
    """Answers requests with one model and one gallery. Raises InputError if they do not belong together."""

    def __init__(self, extractor: Extractor, gallery: Store, setup: Setup):
        self.extractor, self.gallery, self.setup, self.limits = extractor, gallery, setup, setup.limits
        self.mark = Fingerprint(extractor.sha256, f"{extractor.size[0]}x{extractor.size[1]}", extractor.flip)
        gallery.refuse_other(self.mark)
        self.metrics = Metrics()
        [blank] = self.describe([np.zeros((*extractor.size, 3), np.uint8)])  # also warms the engine up
        attrs = {"slots": blank.shape, **({} if extractor.bands is None else {"bands": extractor.bands})}
        self.bands, _ = slots.layout(attrs, blank.size)
        self.decoders = ThreadPoolExecutor(max(1, extractor.num_workers), "decode")
        self.changes = ThreadPoolExecutor(1, "change")
        self.images = Batches(self.describe, extractor.batch_size, self.limits.queue, PATIENCE)
        self.queries = Batches(self.find, SEARCHES, self.limits.queue)

    def close(self) -> None:
        """Finishes what was begun."""
        for part in (self.images, self.queries):
            part.close()
        for workers in (self.decoders, self.changes):
            workers.shutdown()

    def describe(self, pixels: list[np.ndarray]) -> np.ndarray:
        """(n, S, D) descriptors of n images (h, w, 3)."""
        self.metrics.batch.observe(len(pixels))
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        [found] = describe(self.extractor.engine, [batch])
        return found.cpu().numpy()

    def find(self, queries: list[Query]) -> list[Answers]:
        """The answers to each query. Queries of the same entries are searched in one pass."""
        found: dict[int, Answers] = {}
        groups: dict[Only, list[int]] = {}
        for i, query in enumerate(queries):
            groups.setdefault(query.only, []).append(i)
        for only, members in groups.items():
            rows = np.stack([queries[i].descriptor for i in members])
            most = max(queries[i].top for i in members)
            for i, answers in zip(members, self.gallery.search(rows, most, only=only)):
                found[i] = cut(answers, queries[i])
        return [found[i] for i in range(len(queries))]

    def decode(self, content: bytes, name: str) -> np.ndarray:
        """(h, w, 3) uint8. Raises Refused."""
        try:
            image = open_image(content, self.limits.pixels, FORMATS)
            return resized(image.convert("RGB"), *self.extractor.size)
        except InputError as e:
            raise Refused(422, f"image {name!r} {e}") from e
        except Exception as e:  # a damaged palette is noticed when it is converted
            raise Refused(422, f"image {name!r} is damaged") from e

    async def descriptors(self, images: Sequence[tuple[str, bytes]]) -> np.ndarray:
        """(N, F) of N images (name, content). Raises Refused, Busy."""
        if not 0 < len(images) <= self.limits.images:
            raise Refused(413, f"{len(images)} images in one request; expected 1 to {self.limits.images}")
        loop = asyncio.get_running_loop()
        decoded = (loop.run_in_executor(self.decoders, self.decode, content, name) for name, content in images)
        pixels = await asyncio.gather(*decoded)
        found = await asyncio.gather(*map(asyncio.wrap_future, self.images.submit(pixels)))
        return np.stack(found).reshape(len(found), -1)

    async def search(self, descriptors: np.ndarray, top: int, threshold: float, only: Only) -> list[Answers]:
        jobs = [Query(row, top, threshold, only) for row in descriptors]
        return await asyncio.gather(*map(asyncio.wrap_future, self.queries.submit(jobs)))

    def explain(self, descriptor: np.ndarray, answers: Answers) -> tuple[np.ndarray | None, list[str]]:
        """(distance of each answer in each slot (n, S), None without bands; thumbnails as data URLs, "" for none)."""
        shown = [self.thumbnail(name) for name in answers.names]
        urls = ["data:image/webp;base64," + base64.b64encode(image).decode() if image else "" for image in shown]
        if self.bands is None:
            return None, urls
        features, count = self.gallery.features_of(answers), len(answers.names)
        pairs = np.zeros(count, int), np.arange(count)
        return slots.slot_distances(descriptor[None], features, *pairs, len(self.bands)), urls

    def thumbnail(self, name: str) -> bytes:
        """WebP; empty where an entry has no image that can be shown."""
        for folder in self.setup.folders:
            if (folder / name).is_file():
                return thumbnail(str(folder / name), *THUMBNAIL)
        return b""

    async def change(self, work: Any, *arguments: Any) -> Any:
        """Runs a change of the gallery. It is completed even if the client leaves."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self.changes, work, *arguments))

    def add(self, new: New, descriptors: np.ndarray) -> int:
        """Adds images; returns the new number of entries. Raises Refused, InputError."""
        check_new(new)
        if outside := [name for name in new.names if self.setup.keep and not self.place(name)]:
            raise Refused(422, f"the name {outside[0]!r} cannot be used; its folder is not in that of kept images")
        taken = self.gallery.present(new.names)
        taken |= {name for name in new.names for folder in self.setup.folders if os.path.lexists(folder / name)}
        if taken:
            raise Refused(409, f"the name {min(taken)!r} is used already; nothing was added")
        count = len(new.names)
        pids, identities = numbers_of([new.identity] * count)
        camids, cameras = numbers_of([new.camera] * count)
        entries = Entries(descriptors, new.names, np.array(pids), np.array(camids), Labels(identities, cameras))
        self.gallery.add(self.mark, entries)
        try:
            self.keep_images(new)
        except InputError:
            self.remove(new.names, [])
            raise
        return len(self.gallery)

    def place(self, name: str) -> Path | None:
        """Where the image of an entry is kept; None if nowhere, or if a link leads out of the folder."""
        keep = self.setup.keep
        if keep is None or not is_safe(name) or not (keep / name).parent.resolve().is_relative_to(keep.resolve()):
            return None
        return keep / name

    def keep_images(self, new: New) -> None:
        if self.setup.keep is None:
            return
        for name, content in zip(new.names, new.contents):
            path = self.setup.keep / name
            with writing(path), atomic_file(path) as temporary:
                temporary.write_bytes(content)

    def remove(self, names: Sequence[str], identities: Sequence[str]) -> int:
        """Removes entries and their kept images; returns how many. Raises Refused, InputError."""
        removed: list[str] = []

        def chosen(listing: Listing) -> np.ndarray:
            if absent := [*({*names} - {*listing.names}), *({*identities} - {*listing.identities})]:
                raise Refused(404, f"the gallery has no {min(absent)!r}; nothing was removed")
            rows = zip(listing.names, listing.identities)
            mask = np.array([name in names or identity in identities for name, identity in rows], bool)
            removed[:] = [name for name, gone in zip(listing.names, mask) if gone]
            return mask

        count = self.gallery.remove(chosen)
        for name in removed:
            if (path := self.place(name)) and path.is_file():
                with writing(path):
                    path.unlink()
        return count


def one_query(descriptors: np.ndarray, how: str) -> np.ndarray:
    """(1, F), pooled from the descriptors (N, F) of several images. Raises Refused."""
    try:
        return pool(descriptors, how)[None]
    except InputError as e:
        raise Refused(422, str(e)) from e


def cut(answers: Answers, query: Query) -> Answers:
    """The answers that the query asks for, of a search for more."""
    near = answers.distances[: query.top] <= query.threshold
    columns: list[Any] = [column[: int(near.sum())] for column in answers]
    return Answers(*columns)


def is_safe(name: str) -> bool:
    """Whether a name is a relative path that stays in its folder, on every system."""
    path = PurePosixPath(name)
    plain = name.isprintable() and not re.search(r'[\\:*?"<>|]', name) and len(name) <= LONGEST
    parts = all(part[-1] not in ". " and not DEVICE.fullmatch(part) for part in path.parts)
    return plain and parts and str(path) == name != "." and not path.is_absolute()


def check_new(new: New) -> None:
    """Raises Refused for names and labels that cannot be used."""
    if len(new.names) != len(new.contents):
        raise Refused(422, f"{len(new.names)} names for {len(new.contents)} images; give one per image, or none")
    for name in new.names:
        if not is_safe(name) or new.names.count(name) > 1:
            raise Refused(422, f"the name {name[:LONGEST]!r} cannot be used; give each image its own relative path")
    for label in (new.identity, new.camera):
        if not label.isprintable() or label != label.strip() or not 0 < len(label) <= LONGEST:
            raise Refused(422, f"the label {label[:LONGEST]!r} cannot be used; expected printable text")
