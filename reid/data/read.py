"""Reads the JSON files of a dataset folder and validates them.

    <folder>/images/      the images; a file may be a link to the user's own image
    <folder>/meta.json    {"num_cameras", "identities": [pid][camera] -> [file names]}
                          and optionally "query_fnames", "gallery_fnames",
                          "distractors": [pid..], "sources": {file: original name},
                          "labels": {"identities": [label of each pid], "cameras": [..]},
                          "tracks": {gallery file: track},
                          "note": what is special about the test lists,
                          "prepared": {..}: what `prepare` made the dataset from
    <folder>/splits.json  [{"trainval": [pid..], "query": [pid..], "gallery": [pid..]}, ...]
    <folder>/test.json    [{"query": [[file, pid, camera]..], "gallery": [..]}, ...]; optional;
                          "multi_query": further images of the queries, optional

Cameras count from 0. Datasets of Open-ReID and FD-GAN have this form without test.json.
The position of a file in `identities` gives its identity and camera; its name does not.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reid.data.labels import Labels
from reid.data.messages import shortened
from reid.data.records import SUBSETS, Dataset, Image
from reid.errors import InputError, MissingInput

ALL_IMAGES = "no official lists: every image of the query and gallery identities"
Report = Callable[[str], None]


def stop(message: str) -> None:
    raise InputError(message)


def read_dataset(folder: str | Path, split: int = 0, report: Report = stop) -> Dataset:
    """The dataset in `folder` with entry `split` of splits.json and of test.json.

    report: gets a message with file, entry and repair for each broken rule. The default
    raises InputError; if `report` returns, the broken entry is left out. Unreadable JSON
    always raises InputError, and a missing file MissingInput.
    """
    folder = Path(folder)
    meta = read_json(folder / "meta.json", dict)
    num_cameras, known = read_identities(meta, folder, report)
    count, entry = len(meta["identities"]), f"{folder / 'splits.json'}: entry {split}"
    chosen = read_entry(folder / "splits.json", split)
    pids = {s: read_pids(chosen.get(s), f"{entry}, {s}", count, report) for s in SUBSETS}
    lists = {s: [image for image in known.values() if image.pid in pids[s]] for s in SUBSETS}
    official, protocol = read_test_lists(folder, meta, split, known, report)
    lists |= official
    if official and "note" in meta:
        protocol = f"test.json: {meta['note']}"

    for subset in SUBSETS[1:]:
        if not lists[subset]:
            report(f"{folder}: split {split} has no {subset} images; a test needs query and gallery")
    people = {subset: frozenset(image.pid for image in images) for subset, images in lists.items()}
    if both := shortened(sorted(people["trainval"] & (people["query"] | people["gallery"]))):
        report(f"{entry}: pids in both trainval and the test lists: {both}; remove them from one")
    paths = {image.path for images in lists.values() for image in images}
    missing = {path for path in paths if not os.path.isfile(path)}
    for path in sorted(missing):
        report(
            f"{path} is listed but does not exist ({len(missing):,} missing in all); "
            "restore it, or prepare the dataset again"
        )
    lists = {s: [i for i in images if i.path not in missing] for s, images in lists.items()}

    distractors = frozenset(i.pid for i in lists["gallery"]) - {i.pid for i in lists["query"]}
    if "distractors" in meta:
        place = f"{folder / 'meta.json'}: distractors"
        distractors = read_pids(meta["distractors"], place, count, report)
    return Dataset(
        name=folder.resolve().name,
        folder=folder,
        **lists,
        num_cameras=num_cameras,
        protocol=protocol,
        distractors=distractors,
        labels=read_labels(meta, folder / "meta.json", report),
    )


def read_labels(meta: dict, path: Path, report: Report) -> Labels:
    """The labels and sources of meta.json; empty if there are none."""
    labels, sources, tracks = (meta.get(key, {}) for key in ("labels", "sources", "tracks"))
    if not all(isinstance(value, dict) for value in (labels, sources, tracks)):
        report(f"{path}: labels, sources and tracks are objects; correct them or leave them out")
        return Labels()
    names = {}
    for key in ("identities", "cameras"):
        values = as_list(labels.get(key, []), f"{path}: labels, {key}", "a list of texts", report)
        names[key] = tuple(map(str, values))
    return Labels(**names, sources=sources, tracks=tracks)


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file whose outermost value is of `kind` (dict or list)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as e:
        raise MissingInput(f"{path} does not exist; a dataset folder has images/, meta.json and splits.json") from e
    except json.JSONDecodeError as e:
        raise InputError(
            f"{path}: line {e.lineno}, column {e.colno}: not valid JSON ({e.msg}). "
            "The file may be cut short; prepare or download it again"
        ) from e
    except (ValueError, RecursionError, OSError) as e:  # not UTF-8, or a number of 5,000 digits
        raise InputError(f"{path} cannot be read as JSON: {e}") from e
    if not isinstance(content, kind):
        expected = "an object" if kind is dict else "a list"
        raise InputError(f"{path} holds {described(content)}, expected {expected}")
    return content


def read_identities(meta: dict, folder: Path, report: Report) -> tuple[int, dict[str, Image]]:
    """The number of cameras, and {file name: Image} in the order of meta.json."""
    path, images = folder / "meta.json", folder / "images"
    people = meta.get("identities")
    if not isinstance(people, list):
        raise InputError(f"{path}: identities is {described(people)}, expected identities[pid][camera] = [names]")
    most = max((len(cameras) for cameras in people if isinstance(cameras, list)), default=0)
    num_cameras = meta.get("num_cameras", most)
    if not is_integer(num_cameras) or num_cameras < max(most, 1):
        report(f"{path}: num_cameras is {num_cameras!r}, but identities has {most} cameras; correct the number")
        num_cameras = most
    known: dict[str, Image] = {}
    for pid, cameras in enumerate(people):
        entry = f"{path}: identities[{pid}]"
        for camid, names in enumerate(as_list(cameras, entry, "a list of cameras", report)):
            entry = f"{path}: identities[{pid}][{camid}]"
            for name in as_list(names, entry, "a list of file names", report):
                problem = name_problem(name)
                if not problem and name in known:
                    _, *place = known[name]
                    problem = "is already listed as pid {}, camera {}; remove one".format(*place)
                if problem:
                    report(f"{entry}: {name!r} {problem}")
                else:
                    known[name] = Image(os.path.join(images, name), pid, camid)
    return num_cameras, known


def name_problem(name: Any) -> str:
    """Why a name in the JSON is not a path inside images/; "" if it is one."""
    if not isinstance(name, str) or not name:
        return "is not a file name"
    if name.startswith("/") or ".." in name.split("/") or any(c in name for c in "\\:\0"):
        return "is outside the folder images/; names are relative to it, with '/' and without '..'"
    return ""


def read_entry(path: Path, split: int) -> dict:
    """One entry of splits.json or test.json."""
    entries = read_json(path, list)
    if not entries:
        raise InputError(f"{path} is an empty list; expected one object per split")
    if not 0 <= split < len(entries):
        most = len(entries) - 1
        raise InputError(f"{path} has {most + 1} entries and no --split {split}; use --split 0 to {most}")
    if not isinstance(entries[split], dict):
        raise InputError(f"{path}: entry {split} is {described(entries[split])}, expected an object")
    return entries[split]


def read_test_lists(
    folder: Path, meta: dict, split: int, known: dict[str, Image], report: Report
) -> tuple[dict[str, list[Image]], str]:
    """({"query": images, "gallery": images}, protocol); {} without official lists."""
    path = folder / "test.json"
    if with_places := path.exists():
        chosen, protocol = read_entry(path, split), "official lists (test.json)"
        rows = {s: chosen.get(s) for s in SUBSETS[1:]} | {k: v for k, v in chosen.items() if k == "multi_query"}
    else:
        path = folder / "meta.json"
        protocol = "official lists (query_fnames and gallery_fnames of meta.json)"
        rows = {s: meta.get(f"{s}_fnames") for s in SUBSETS[1:]}
        if not any(f"{s}_fnames" in meta for s in rows):
            return {}, ALL_IMAGES
    tests: dict[str, list[Image]] = {subset: [] for subset in rows}
    for subset, images in tests.items():
        entry = f"{path}: {subset}"
        for number, row in enumerate(as_list(rows[subset], entry, "a list", report)):
            name, *place = row if isinstance(row, list) and row else [row]
            if problem := row_problem(name, place, known, with_places):
                report(f"{entry}[{number}]: {problem}")
            else:
                images.append(known[name])
    return tests, protocol


def row_problem(name: Any, place: list, known: dict[str, Image], with_place: bool) -> str:
    """What is wrong with a row of a test list: a file name, or [file, pid, camera]."""
    if with_place and not (len(place) == 2 and all(map(is_integer, place))):
        return f"{[name, *place]!r} is not [file, pid, camera]"
    image = known.get(name) if isinstance(name, str) else None
    if image is None:
        return f"{name!r} {name_problem(name) or 'is not among the identities of meta.json'}"
    if place and place != [image.pid, image.camid]:
        return (
            f"{name} has pid {place[0]}, camera {place[1]}, but pid {image.pid}, camera "
            f"{image.camid} in meta.json; correct one of them"
        )
    return ""


def read_pids(values: Any, entry: str, count: int, report: Report) -> frozenset[int]:
    """The pids of a list, which must be 0 to count - 1."""
    pids = as_list(values, entry, "a list of pids", report)
    for pid in pids:
        if not is_integer(pid):
            report(f"{entry}: {pid!r} is not a pid (a whole number)")
        elif not 0 <= pid < count:
            report(f"{entry}: pid {pid} is out of range; meta.json has identities 0 to {count - 1}")
    return frozenset(filter(is_integer, pids))


def as_list(value: Any, entry: str, expected: str, report: Report) -> list:
    """The value if it is a list; otherwise reports it and returns an empty list."""
    if isinstance(value, list):
        return value
    report(f"{entry} is {described(value)}, expected {expected}")
    return []


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def described(value: Any) -> str:
    """The kind of a JSON value, for messages."""
    kinds = {dict: "an object", list: "a list", str: f"text ({value!r:.40})", type(None): "missing"}
    return kinds.get(type(value), repr(value))
