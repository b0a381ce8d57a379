"""The rank lists of a Result, and all that the page needs to show them, packed small."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from reid.data.loader import decode
from reid.errors import InputError
from reid.evaluation.conventions import CameraPairs
from reid.evaluation.distances import blocks, nearest, on_host
from reid.evaluation.ranking import check_labels, same_person
from reid.evaluation.rerank import expand_queries, reciprocal_blocks
from reid.evaluation.results import Result
from reid.report import slots

RIGHT, WRONG, JUNK = 0, 1, 2
MOST_QUERIES = 4000  # in a page; of more, evenly spread ones
MANY_IMAGES = 24_000  # from here on thumbnails are smaller
STEPS = 255  # of a slot's share, relative to the largest of its pair


class Lists(NamedTuple):
    """Per query the nearest gallery rows (Q, W), -1 behind the end: the k best kept ones and the junk among them,
    with distance and kind (RIGHT, WRONG, JUNK); the distance of each of the Ranking's matches (T,)."""

    answers: np.ndarray
    distances: np.ndarray
    kinds: np.ndarray
    match_distances: np.ndarray


def rank_lists(
    result: Result, k: int = 10, rerank: bool = False, query_expansion: int = 0, device=None
) -> tuple[Lists, list[dict] | None]:
    """The Lists of a Result whose distances were re-ranked or expanded as told, and its table of camera pairs."""
    query, gallery = result.features.query, result.features.gallery
    labels = check_labels(query.pids, gallery.pids, query.camids, gallery.camids)
    pairs, metric, n = same_person(*labels), result.conventions["metric"], len(gallery)
    same, junk = (
        np.sort(q * n + g)
        for q, g in ((pairs.query, pairs.gallery), (pairs.query[pairs.junk], pairs.gallery[pairs.junk]))
    )
    most = np.bincount(pairs.query[pairs.junk], minlength=1).max()
    table = CameraPairs(pairs, labels[2], labels[3]) if labels[2] is not None and result.cameras is None else None
    features = query.features
    if query_expansion:
        features = expand_queries(features, gallery.features, query_expansion, metric, device)
    found, matched = [], []
    for block in (reciprocal_blocks if rerank else blocks)(features, gallery.features, metric, device):
        rows = np.arange(len(block.keys))[:, None]
        columns = nearest(block.keys, min(n, k + int(most)))
        offsets = on_host(block.offsets)
        distances = on_host(block.keys[rows, columns]) + offsets
        pair = (rows + block.start) * n + columns
        is_junk = np.isin(pair, junk)
        kinds = np.where(is_junk, JUNK, np.where(np.isin(pair, same), RIGHT, WRONG))
        shown = (np.cumsum(~is_junk, 1) - ~is_junk < k) & (np.cumsum(is_junk, 1) <= k)
        order = np.argsort(~shown, 1, kind="stable")[:, : 2 * k]
        found.append([np.take_along_axis(x, order, 1) for x in (np.where(shown, columns, -1), distances, kinds)])
        at = slice(*np.searchsorted(result.ranking.query, [block.start, block.start + len(rows)]))
        q, g = result.ranking.query[at] - block.start, result.ranking.gallery[at]
        matched.append(on_host(block.keys[q, g]) + offsets[q, 0])
        if table:
            table.add(block.keys, block.start)
    joined = [np.concatenate(x) for x in zip(*found)]
    width = int((joined[0] >= 0).sum(1).max())
    lists = Lists(*(x[:, :width] for x in joined), match_distances=np.concatenate(matched))
    return lists, table.table() if table else result.cameras


def thumbnails(paths: Sequence[str | None]) -> list[bytes]:
    """A small WebP of each image; empty where there is no path or no readable image."""
    width, height, quality = (48, 96, 60) if len(paths) <= MANY_IMAGES else (32, 64, 50)

    def thumbnail(path: str | None) -> bytes:
        try:
            pixels = decode(path, height, width) if path else None
        except InputError:
            return b""
        out = io.BytesIO()
        if pixels is not None:
            PILImage.fromarray(pixels).save(out, "WEBP", quality=quality, method=2)
        return out.getvalue()

    with ThreadPoolExecutor(4, "thumbnail") as pool:
        return list(tqdm(pool.map(thumbnail, paths), "thumbnails", len(paths), unit=" images", disable=None))


def packed(values: np.ndarray, dtype: str) -> dict[str, str]:
    """An array as the page reads it: JavaScript's name of its type, and base64."""
    kind = {"uint8": "Uint8Array", "int32": "Int32Array", "float32": "Float32Array"}[dtype]
    return {
        "type": kind,
        "text": base64.b64encode(np.ascontiguousarray(values, "<" + np.dtype(dtype).str[1:])).decode(),
    }


def page_data(result: Result, lists: Lists, paths: dict[str, str]) -> tuple[dict[str, Any], str]:
    """(the page's data, its thumbnails as one text). `paths`: image name -> file, of the images that are there."""
    query, gallery, r = result.features.query, result.features.gallery, result.ranking
    step = -(-len(query) // MOST_QUERIES)
    shown = np.arange(0, len(query), step)
    used_matches = np.flatnonzero(r.query % step == 0)
    answers, counts = lists.answers[shown], (lists.answers[shown] >= 0).sum(1)
    listed = answers[answers >= 0]
    used, where = np.unique(np.concatenate([listed, r.gallery[used_matches]]), return_inverse=True)
    images = [(query, i) for i in shown.tolist()] + [(gallery, i) for i in used.tolist()]
    names = [str(side.names[i]) for side, i in images]
    files = [paths.get(name) for name in names]
    order = {path: i for i, path in enumerate(dict.fromkeys(f for f in files if f))}
    encoded = [base64.b64encode(t).decode() for t in thumbnails([*order])]

    q = np.concatenate([np.repeat(shown, counts), r.query[used_matches]])
    g = np.concatenate([listed, r.gallery[used_matches]])
    distances = np.concatenate([lists.distances[shown][answers >= 0], lists.match_distances[used_matches]])
    kinds = np.concatenate([lists.kinds[shown][answers >= 0], np.full(len(used_matches), RIGHT)])
    ends = np.cumsum(np.bincount(r.query[used_matches] // step, minlength=len(shown)))
    entries = {"image": packed(where + len(shown), "int32"), "distance": packed(distances, "float32"),
               "kind": packed(kinds, "uint8"), "rank": packed((r.right + r.wrong)[used_matches], "int32")}  # fmt: skip
    data: dict[str, Any] = {
        "step": step,
        "names": names,
        "pids": [int(side.pids[i]) for side, i in images],
        "camids": [None if side.camids is None else int(side.camids[i]) for side, i in images],
        "thumbs": [order.get(f, -1) if f else -1 for f in files],
        "lengths": [len(t) for t in encoded],
        "queries": len(shown),
        "answer_ends": np.cumsum(counts).tolist(),
        "match_ends": ends.tolist(),
        "ap": [None if np.isnan(v) else round(float(v), 4) for v in result.ap[shown]],
        "first": [None if np.isnan(v) else int(v) for v in r.first_match[shown]],
        "entries": entries,
    }
    width = query.features.shape[1]
    bands, reason = slots.layout(result.features.attrs, width)
    if bands is None:
        return data | {"no_slots": reason}, "".join(encoded)
    parts = slots.slot_distances(query.features, gallery.features, q, g, len(bands))
    top = np.maximum(parts.max(1, keepdims=True), np.finfo(float).tiny)
    entries["parts"] = packed(np.rint(parts / top * STEPS), "uint8")
    entries["squared"] = packed(parts.sum(1), "float32")
    columns = slots.names(bands)
    data["slots"] = [
        {"top": b[0], "bottom": b[1], "column": c, "name": n} for b, (c, n) in zip(bands.tolist(), columns)
    ]
    data["explained"] = means(parts[: len(listed)], kinds[: len(listed)])
    data["halfway"] = np.maximum(np.mean([*data["explained"].values()], 0), np.finfo(float).tiny).tolist()
    return data, "".join(encoded)


def means(parts: np.ndarray, kinds: np.ndarray) -> dict[str, list[float]]:
    """Mean distance in each slot over the listed right answers, and over the wrong ones."""
    return {name: parts[kinds == kind].mean(0).tolist() for name, kind in (("right", RIGHT), ("wrong", WRONG))
            if (kinds == kind).any()}  # fmt: skip
