"""The rank lists of a Result, and the data that the page needs to show them, in a compact form."""

import base64
import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from reid.data.loader import fitted
from reid.errors import InputError
from reid.evaluation.conventions import CameraPairs
from reid.evaluation.distances import Block, blocks, nearest, on_host
from reid.evaluation.features import Features
from reid.evaluation.ranking import check_labels, same_person
from reid.evaluation.rerank import expand_queries, reciprocal_blocks
from reid.evaluation.results import Result
from reid.report import slots

logger = logging.getLogger(__name__)

RIGHT, WRONG, JUNK = 0, 1, 2
KINDS = ("right", "wrong", "junk")
MOST_QUERIES = 4000  # in a page; if there are more, evenly spaced ones
WIDEST = 3  # times as wide as high: a wider thumbnail is less high
MANY_IMAGES = 24_000  # thumbnails are smaller from this number on
STEPS = 255  # of a slot's share, relative to the largest share of its pair
TINY = np.finfo(float).tiny
ARRAYS = {"uint8": "Uint8Array", "int32": "Int32Array", "float32": "Float32Array"}  # in JavaScript


class Pairs(NamedTuple):
    """Query and gallery rows, distances, and kinds (RIGHT, WRONG, JUNK) of P pairs, by query and then by distance."""

    query: np.ndarray
    gallery: np.ndarray
    distance: np.ndarray
    kind: np.ndarray


def joined(parts: Sequence[Pairs]) -> Pairs:
    return Pairs(*(np.concatenate(arrays) for arrays in zip(*parts)))


def rank_lists(result: Result, top: int = 10, device=None) -> tuple[Pairs, Pairs, list[dict] | None]:
    """(the answers to each query, the matches of the Ranking, the table of camera pairs or None without cameras).

    The answers are the `top` best kept gallery images and the junk among them, at most `top` too. The distances are
    computed again as the Result's scoring says, on `device` (None: NumPy on the CPU).
    """
    features, scoring, ranking = result.features, result.scoring, result.ranking
    query, gallery = features.query, features.gallery
    labels = check_labels(query.pids, gallery.pids, query.camids, gallery.camids)
    same = same_person(*labels)
    most_junk = np.bincount(same.query[same.junk], minlength=1).max()
    table = None
    if query.camids is not None and result.cameras is None and scoring.cmc != "vehicleid":
        table = CameraPairs(same, labels[2], labels[3])
    queries, distances = query.features, reciprocal_blocks if scoring.rerank else blocks
    if scoring.query_expansion:
        queries = expand_queries(queries, gallery.features, scoring.query_expansion, scoring.metric, device)
    answers, match_distances = [], []
    for block in distances(queries, gallery.features, scoring.metric, device):
        columns = nearest(block.keys, min(len(gallery), top + int(most_junk)))
        answers.append(best(block, columns, features, top))
        first, last = np.searchsorted(ranking.query, [block.start, block.start + len(columns)])
        match_distances.append(at(block, ranking.query[first:last] - block.start, ranking.gallery[first:last]))
        if table:
            table.add(block.keys, block.start)
    right = np.full(len(ranking.query), RIGHT)
    matches = Pairs(ranking.query, ranking.gallery, np.concatenate(match_distances), right)
    return joined(answers), matches, table.table() if table else result.cameras


def at(block: Block, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The distances in these cells of a block."""
    return on_host(block.keys[rows, columns]) + on_host(block.offsets)[rows, 0]


def best(block: Block, columns: np.ndarray, features: Features, top: int) -> Pairs:
    """The answers to a block of queries; columns (n, W): the nearest gallery rows, in order."""
    rows = np.indices(columns.shape)[0]
    query, distance = rows + block.start, at(block, rows, columns)
    kind = kinds(features, query, columns)
    is_junk = kind == JUNK
    kept_before = np.cumsum(~is_junk, 1) - ~is_junk
    shown = (kept_before < top) & (~is_junk | (np.cumsum(is_junk, 1) <= top))
    return Pairs(query[shown], columns[shown], distance[shown], kind[shown])


def kinds(features: Features, query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """RIGHT, WRONG or JUNK for query and gallery rows of any shape."""
    q, g = features.query, features.gallery
    same = q.pids[query] == g.pids[gallery]
    junk = np.zeros_like(same)
    if q.camids is not None and g.camids is not None:
        junk = same & (q.camids[query] == g.camids[gallery])
    return np.where(junk, JUNK, np.where(same, RIGHT, WRONG))


def thumbnails(paths: Sequence[str]) -> list[bytes]:
    """A small WebP of each image, in its own aspect ratio; empty where it cannot be read."""
    height, quality = (96, 60) if len(paths) <= MANY_IMAGES else (64, 50)
    with ThreadPoolExecutor(4, "thumbnail") as pool:
        made = pool.map(lambda path: thumbnail(path, height, quality), paths)
        return list(tqdm(made, "thumbnails", len(paths), unit=" images", disable=None))


def thumbnail(path: str, height: int, quality: int) -> bytes:
    try:
        pixels = fitted(path, height, WIDEST * height)
    except InputError as e:
        logger.warning(f"{e} (there is no picture of it)")
        return b""
    out = io.BytesIO()
    PILImage.fromarray(pixels).save(out, "WEBP", quality=quality, method=2)
    return out.getvalue()


def packed(values: np.ndarray, dtype: str) -> dict[str, str]:
    """An array for report.js: the JavaScript type, and the little-endian bytes as base64."""
    stored = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
    return {"type": ARRAYS[dtype], "text": base64.b64encode(stored.tobytes()).decode()}


def page_data(result: Result, answers: Pairs, matches: Pairs, paths: dict[str, str]) -> tuple[dict[str, Any], str]:
    """(data of the page for JSON, its thumbnails as one text). answers, matches: of rank_lists.

    paths: image name -> file, of the existing images.
    """
    ranking, features = result.ranking, result.features
    step = -(-len(features.query) // MOST_QUERIES)
    shown = np.arange(0, len(features.query), step)
    ranks = (ranking.right + ranking.wrong)[matches.query % step == 0]
    answers, matches = (Pairs(*(x[p.query % step == 0] for x in p)) for p in (answers, matches))
    pairs = joined([answers, matches])
    used, image = np.unique(pairs.gallery, return_inverse=True)
    images, thumbs = image_data(features, shown, used, paths)
    data = images | {
        "step": step,
        "queries": len(shown),
        "answer_ends": np.searchsorted(answers.query, shown, "right").tolist(),
        "match_ends": np.searchsorted(matches.query, shown, "right").tolist(),
        "ap": [None if np.isnan(v) else round(float(v), 4) for v in result.ap[shown]],
        "first": [None if np.isnan(v) else int(v) for v in ranking.first_match[shown]],
        "entries": {
            "image": packed(image + len(shown), "int32"),
            "distance": packed(pairs.distance, "float32"),
            "kind": packed(pairs.kind, "uint8"),
            "rank": packed(ranks, "int32"),
        },
    }
    bands, reason = slots.layout(features.attrs, features.query.features.shape[1])
    if bands is None:
        return data | {"no_slots": reason}, thumbs
    add_slots(data, features, pairs, len(answers.query), bands)
    return data, thumbs


def image_data(features: Features, queries, gallery, paths: dict[str, str]) -> tuple[dict[str, Any], str]:
    """(names and labels, thumbnails) of the images in these query and gallery rows.

    identities and cameras: the user's labels by number, where there are any.
    """
    rows = [(side, i) for side, used in ((features.query, queries), (features.gallery, gallery)) for i in used]
    names = [str(side.names[i]) for side, i in rows]
    order = {path: i for i, path in enumerate(dict.fromkeys(paths[name] for name in names if name in paths))}
    encoded = [base64.b64encode(t).decode() for t in thumbnails([*order])]
    labels = features.labels
    data: dict[str, Any] = {
        "names": [labels.source(name) for name in names],
        "pids": [int(side.pids[i]) for side, i in rows],
        "camids": [None if side.camids is None else int(side.camids[i]) for side, i in rows],
        "thumbs": [order.get(paths.get(name, ""), -1) for name in names],
        "lengths": [len(t) for t in encoded],
    }
    if labels.given:
        data["identities"] = {pid: labels.identity(pid) for pid in data["pids"]}
        data["cameras"] = {camid: labels.camera(camid) for camid in data["camids"] if camid is not None}
    return data, "".join(encoded)


def add_slots(data: dict[str, Any], features: Features, pairs: Pairs, listed: int, bands: np.ndarray) -> None:
    """Adds the distance of each pair in each slot, and its means over the first `listed` pairs, the answers."""
    query, gallery = features.query.features, features.gallery.features
    parts = slots.slot_distances(query, gallery, pairs.query, pairs.gallery, len(bands))
    largest = np.maximum(parts.max(1, keepdims=True), TINY)
    data["entries"]["parts"] = packed(np.rint(parts / largest * STEPS), "uint8")
    data["entries"]["squared"] = packed(parts.sum(1), "float32")
    means = {}
    for name, kind in (("right", RIGHT), ("wrong", WRONG)):
        chosen = parts[:listed][pairs.kind[:listed] == kind]
        if len(chosen):
            means[name] = chosen.mean(0).tolist()
    data["means"] = means
    data["halfway"] = np.maximum(np.mean([*means.values()], 0), TINY).tolist()
    data["slots"] = slots.places(bands)
