"""A gallery in Milvus: one collection, in a local file (Milvus Lite) or in a cluster.

An entry has its name (primary key), identity, camera, source, feature and `row`: the time of its addition, by which
equally near entries are ordered. The metric is the inner product, so a distance is 2 - 2 q.g, as in a gallery file.
The fingerprint is in the collection's properties.

An addition is written in blocks. A killed process leaves whole blocks; `gallery add` and `gallery copy` continue.
"""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from reid.data.labels import Labels
from reid.errors import InputError, MissingInput, StoreUnavailable
from reid.gallery.store import (
    ALL,
    Answers,
    Entries,
    Fingerprint,
    Listing,
    Only,
    Store,
    check_features,
    check_names,
    texts,
)

TEXTS = ("name", "identity", "camera", "source")
LONGEST = 4096  # bytes of a text
INDEXES: dict[str, dict[str, int]] = {"FLAT": {}, "HNSW": {"M": 16, "efConstruction": 200}, "IVF_FLAT": {"nlist": 1024}}
MOST = 16384  # answers of one request, set by Milvus
BLOCK = 1 << 20  # numbers in one request; a message has at most 64 MiB
QUERIES = 64  # in one request
SAME = 2e-6  # inner products of equal entries differ by less in float32
TIMEOUT = 30.0  # seconds for one request
WRITING = 600.0  # seconds for a block: Milvus Lite writes and indexes a segment within a request
NEW = "__new"  # suffix of a collection that will replace another


class Milvus(Store):
    """The collection `name` at `uri`: a path ending in .db, or http://HOST:PORT. Raises InputError."""

    def __init__(self, uri: str, name: str):
        self.uri, self.name = uri, name
        self.address = f"milvus:{uri}#{name}"
        self.local = not re.match(r"\w+://", uri)
        self.loaded = True
        self.lock = threading.RLock()  # a local file is replaced when entries are removed
        if not re.fullmatch(r"[A-Za-z_]\w{0,200}", name, re.ASCII):
            raise InputError(f"{name} is not a name of a collection; use letters, digits and _")
        self.client = connect(uri)
        with self.talking():
            self.recover()
            if not self.client.has_collection(name):
                raise MissingInput(f"{self.address} does not exist; python -m reid gallery create makes it")
            found = self.client.describe_collection(name)
            self.fingerprint = self.read_fingerprint()
            self.width = next(int(f["params"]["dim"]) for f in found["fields"] if f["name"] == "feature")
            self.client.load_collection(name)

    @classmethod
    def create(cls, uri: str, name: str, mark: Fingerprint, entries: Entries, index: str = "FLAT") -> "Milvus":
        """A new collection of the entries. Raises InputError when it exists, or entries cannot be used."""
        check_features(entries, None)
        check_names(entries.names, ())
        client = connect(uri)
        with reported(uri):
            if client.has_collection(name):
                raise InputError(f"milvus:{uri}#{name} already exists; use gallery add")
            make(client, name, mark, entries.features.shape[1], index)
        gallery = cls(uri, name)
        with gallery.talking():
            gallery.write(name, entries)
        return gallery

    @contextmanager
    def talking(self) -> Iterator[None]:
        """One use of the store. After an error the collection is loaded again, as a restarted server may need it."""
        with self.lock, reported(self.address):
            if not self.loaded:
                self.client.load_collection(self.name)
                self.loaded = True
            try:
                yield
            except Exception:
                self.loaded = False
                raise

    def read_fingerprint(self) -> Fingerprint:
        """Raises InputError for a collection that is not a gallery."""
        try:
            properties = self.client.describe_collection(self.name)["properties"]
            return Fingerprint(*json.loads(properties["fingerprint"]))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{self.address} is not a gallery; give another collection") from None

    def recover(self) -> None:
        """Completes or undoes a removal whose process was killed."""
        if self.local and self.client.has_collection(self.name + NEW):
            if self.client.has_collection(self.name):
                self.client.drop_collection(self.name + NEW)
            else:
                self.client.rename_collection(self.name + NEW, self.name)

    def __len__(self) -> int:
        with self.talking():
            return self.client.query(self.name, filter="", output_fields=["count(*)"], timeout=TIMEOUT)[0]["count(*)"]

    def found(self) -> list[dict[str, Any]]:
        """Texts of all entries, in the order of their addition."""
        with self.talking():
            pages = self.client.query_iterator(self.name, batch_size=MOST // 2, output_fields=["row", *TEXTS])
            rows = []
            while page := pages.next():
                rows += page
            pages.close()
        return sorted(rows, key=lambda entry: entry["row"])

    def listing(self) -> Listing:
        rows = self.found()
        return Listing(*([entry[text] for entry in rows] for text in TEXTS[:3]))

    @contextmanager
    def entries(self) -> Iterator[Entries]:
        yield self.content()

    def content(self) -> Entries:
        rows = self.found()
        names = [entry["name"] for entry in rows]
        pids, identities = numbered([entry["identity"] for entry in rows])
        camids, cameras = numbered([entry["camera"] for entry in rows])
        sources = {entry["name"]: entry["source"] for entry in rows if entry["source"] != entry["name"]}
        return Entries(Features(self, names), names, pids, camids, Labels(identities, cameras, sources))

    def present(self, names: Sequence[str]) -> set[str]:
        with self.talking():
            parts = (names[i : i + MOST // 8] for i in range(0, len(names), MOST // 8))
            pages = [self.client.query(self.name, filter=one_of("name", p), output_fields=["name"]) for p in parts]
        return {entry["name"] for page in pages for entry in page}

    def add(self, fingerprint: Fingerprint, entries: Entries) -> None:
        with self.talking():
            self.refuse_other(fingerprint)
            check_features(entries, self.width)
            check_names(entries.names, self.present(entries.names))
            self.write(self.name, entries)

    def write(self, name: str, entries: Entries) -> None:
        """Writes entries into a collection, in blocks."""
        identities, cameras = (
            texts(entries.pids, entries.labels.identities),
            texts(entries.camids, entries.labels.cameras),
        )
        sources = [entries.labels.source(image) for image in entries.names]
        long = [text for column in (entries.names, identities, cameras, sources) for text in column if too_long(text)]
        if long:
            raise InputError(f"the text {long[0][:40]}... has more than {LONGEST} bytes; shorten it. Nothing was added")
        step, start = max(1, BLOCK // self.width), time.time_ns()
        for i in range(0, len(entries.names), step):
            features = np.asarray(entries.features[i : i + step], np.float32)
            columns = (column[i : i + step] for column in (entries.names, identities, cameras, sources))
            rows = enumerate(zip(*columns, features), start + i)
            data = [dict(zip((*TEXTS, "feature"), values), row=row) for row, values in rows]
            self.client.upsert(name, data, timeout=WRITING)
        if len(entries.names) > step:
            self.client.flush(name, timeout=WRITING)  # Milvus Lite searches entries that are not flushed one by one

    def remove(self, chosen: Callable[[Listing], np.ndarray]) -> int:
        """Milvus Lite: the collection is written anew and the old one deleted, so its bytes are in no file.

        A cluster deletes and compacts; its garbage collection deletes the old files later.
        """
        with self.talking():
            self.recover()
            listing = self.listing()
            gone = chosen(listing)
            names = [name for name, removed in zip(listing.names, gone) if removed]
            if names and self.local:
                self.replace(self.content().select(~gone))
            elif names:
                for i in range(0, len(names), MOST // 8):
                    self.client.delete(self.name, filter=one_of("name", names[i : i + MOST // 8]), timeout=TIMEOUT)
                self.client.flush(self.name, timeout=WRITING)
                self.client.compact(self.name)
            return len(names)

    def replace(self, entries: Entries) -> None:
        """Writes a collection of the entries and puts it in the place of this one."""
        index = self.client.describe_index(self.name, "feature")["index_type"]
        make(self.client, self.name + NEW, self.fingerprint, self.width, index)
        self.write(self.name + NEW, entries)
        self.client.drop_collection(self.name)
        self.client.rename_collection(self.name + NEW, self.name)
        self.client.load_collection(self.name)

    def search(self, queries: np.ndarray, top: int, threshold: float = np.inf, only: Only = ALL) -> list[Answers]:
        """The search is exact with the index FLAT. Raises InputError for `top` above 16,384."""
        queries = self.check_queries(queries)
        if top > MOST:
            raise InputError(f"{top} answers are too many for Milvus; the maximum is {MOST}")
        labels = {"identity": only.identities, "camera": only.cameras}
        where = " and ".join(one_of(field, values) for field, values in labels.items() if values)
        hits = [
            row for i in range(0, len(queries), QUERIES) for row in self.nearest(queries[i : i + QUERIES], top, where)
        ]
        return [answers_of(query, row, top, threshold) for query, row in zip(queries, hits)]

    def nearest(self, queries: np.ndarray, top: int, where: str) -> list[list[dict[str, Any]]]:
        """At least the `top` nearest hits of each query, in any order, with all hits equally near as the last one.

        Milvus returns any of equally near entries. So more are requested, until a farther one is among them.
        """
        limit = min(top + 1, MOST)
        while True:
            with self.talking():
                if self.read_fingerprint() != self.fingerprint:
                    raise InputError(f"{self.address} was replaced by a gallery of another model; open it again")
                found = self.client.search(
                    self.name,
                    data=[*queries],
                    limit=limit,
                    filter=where,
                    output_fields=["row", "feature", *TEXTS],
                    search_params={"metric_type": "IP", "params": {"ef": max(64, limit), "nprobe": 64}},
                    timeout=TIMEOUT,
                )
            cut = (len(row) == limit and row[-1]["distance"] > row[top - 1]["distance"] - SAME for row in found)
            if limit == MOST or not any(cut):
                break
            limit = min(2 * limit, MOST)
        return [[hit["entity"] for hit in row] for row in found]

    def features_of(self, answers: Answers) -> np.ndarray:
        return Features(self, answers.names)[:]

    def info(self) -> dict[str, str]:
        with self.talking():
            index = self.client.describe_index(self.name, "feature")["index_type"]
        return {"features": f"{self.width} float32", "index": index}


class Features:
    """The features (M, F) of named entries; only slices of it can be read."""

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, gallery: Milvus, names: Sequence[str]):
        self.gallery, self.names, self.shape = gallery, names, (len(names), gallery.width)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, part: slice) -> np.ndarray:
        names, g = self.names[part], self.gallery
        result = np.empty((len(names), g.width), np.float32)
        step = min(MOST // 8, max(1, BLOCK // g.width))
        for i in range(0, len(names), step):
            block = names[i : i + step]
            with g.talking():
                found = g.client.get(g.name, ids=block, output_fields=["name", "feature"], timeout=TIMEOUT)
            known = {entry["name"]: entry["feature"] for entry in found}
            if len(known) < len(block):
                raise InputError(f"{g.address} was changed by another process while it was read; run it again")
            result[i : i + step] = [known[name] for name in block]
        return result


def answers_of(query: np.ndarray, hits: Sequence[dict[str, Any]], top: int, threshold: float) -> Answers:
    """Answers from hits in any order. Distances are computed again: those of Milvus differ for equal entries."""
    features = np.array([hit["feature"] for hit in hits]).reshape(-1, len(query))
    distances = np.maximum(2 - 2 * np.vecdot(features, query.astype(float)), 0).astype(np.float32)
    rows = np.array([hit["row"] for hit in hits], np.int64)
    order = np.lexsort((rows, distances))[:top]
    order = order[distances[order] <= threshold]
    return Answers(rows[order], distances[order], *([hits[i][text] for i in order] for text in TEXTS))


def connect(uri: str) -> Any:
    """A client. Raises InputError without the package, StoreUnavailable if nothing answers."""
    try:
        from pymilvus import MilvusClient
    except ImportError as e:
        raise InputError(f'milvus:{uri} needs pymilvus: pip install "rrid[milvus]" ({e})') from e
    for name in ("pymilvus", "milvus_lite"):  # they log each error that they raise, with its traceback
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with reported(f"milvus:{uri}"):
        return MilvusClient(uri, timeout=TIMEOUT)


@contextmanager
def reported(address: str) -> Iterator[None]:
    """Turns an error of Milvus into StoreUnavailable."""
    from grpc import RpcError
    from pymilvus import MilvusException

    try:
        yield
    except (MilvusException, RpcError, OSError) as e:
        said = str(getattr(e, "message", e)).split("\n")[0]
        raise StoreUnavailable(
            f"{address} does not answer or refuses ({said}); check that it runs, has free space, and that no other "
            "process has the file open"
        ) from e


def make(client: Any, name: str, mark: Fingerprint, width: int, index: str) -> None:
    """Creates an empty collection."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    for text in TEXTS:
        schema.add_field(text, DataType.VARCHAR, max_length=LONGEST, is_primary=text == "name")
    schema.add_field("row", DataType.INT64)
    schema.add_field("feature", DataType.FLOAT_VECTOR, dim=width)
    indexes = client.prepare_index_params()
    indexes.add_index("feature", index_type=index, metric_type="IP", params=INDEXES[index])
    properties = {"fingerprint": json.dumps(mark)}
    kind = {"schema": schema, "index_params": indexes, "properties": properties, "consistency_level": "Strong"}
    client.create_collection(name, **kind)


def one_of(field: str, values: Collection[str]) -> str:
    """A filter of Milvus: the field has one of the values."""
    return f"{field} in {json.dumps([*values], ensure_ascii=False)}"


def numbered(labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """(the number of each label, the labels); "" becomes -1."""
    known = list(dict.fromkeys(filter(None, labels)))
    places = {label: i for i, label in enumerate(known)} | {"": -1}
    return np.array([places[label] for label in labels], np.int64), known


def too_long(text: str) -> bool:
    return len(text.encode()) > LONGEST
