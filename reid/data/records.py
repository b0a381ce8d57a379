"""What a dataset is: lists of images with identities and cameras, read from its JSON files and validated.

    <folder>/images/      the images; a file may be a link to the user's own image
    <folder>/meta.json    {"num_cameras", "identities": [pid][camera] -> [file names], and optionally
                          "query_fnames", "gallery_fnames", "distractors": [pid..], "sources": {file: original name},
                          "note": what is special about the test lists}
    <folder>/splits.json  [{"trainval": [pid..], "query": [pid..], "gallery": [pid..]}, ...]
    <folder>/test.json    [{"query": [[file, pid, camera]..], "gallery": [..]}, ...]   optional

Cameras count from 0. Open-ReID and FD-GAN datasets have this form without test.json. Where a file lies in
`identities` says who it shows; its name says nothing that is relied upon.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from reid.errors import InputError, MissingInput

SUBSETS = ("trainval", "query", "gallery")
ALL_IMAGES = "no official lists: every image of the query and gallery identities"
Report = Callable[[str], None]


class Image(NamedTuple):
    path: str
    pid: int
    camid: int


@dataclass(frozen=True, repr=False)
class Dataset:
    """Images by subset. `protocol` names the test lists, for every result; `distractors` are gallery identities
    that no query asks for."""

    name: str
    folder: Path
    trainval: list[Image]
    query: list[Image]
    gallery: list[Image]
    num_cameras: int
    protocol: str
    distractors: frozenset[int]

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the sorted (file name, size in bytes, pid, camid, subset) of all images."""
        rows = sorted(
            f"{os.path.basename(image.path)} {os.path.getsize(image.path)} {image.pid} {image.camid} {subset}\n"
            for subset in SUBSETS
            for image in getattr(self, subset)
        )
        return hashlib.sha256("".join(rows).encode()).hexdigest()

    def hold_out(self, num_val: int) -> tuple[list[Image], list[Image]]:
        """trainval as (train, val): val has the images of the last num_val of the sorted identities."""
        pids = sorted({image.pid for image in self.trainval})
        if not 0 < num_val < len(pids):
            raise InputError(f"--num_val {num_val}: {self.name} has {len(pids)} training identities; give 1 to "
                             f"{len(pids) - 1}, or use --train_set trainval")  # fmt: skip
        held = set(pids[-num_val:])
        return ([i for i in self.trainval if i.pid not in held], [i for i in self.trainval if i.pid in held])

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.num_cameras} cameras, {self.protocol}"]
        lines.append(f"{'':<13}{'identities':>11}{'images':>10}{'cameras':>9}")
        rows = [(subset, getattr(self, subset)) for subset in SUBSETS]
        if self.distractors:
            rows.append(("  distractors", [i for i in self.gallery if i.pid in self.distractors]))
        for title, images in rows:
            pids, cameras = {i.pid for i in images}, {i.camid for i in images}
            lines.append(f"{title:<13}{len(pids):>11,}{len(images):>10,}{len(cameras):>9}")
        return "\n".join(lines)

    __repr__ = __str__


def combine(datasets: Sequence[Dataset]) -> Dataset:
    """One dataset for joint training, identities and cameras kept apart: those of the second dataset follow those of
    the first, and so on. hold_out then takes identities of the last one."""
    if len(datasets) == 1:
        return datasets[0]
    lists: dict[str, list[Image]] = {subset: [] for subset in SUBSETS}
    distractors: set[int] = set()
    first_pid = first_camid = 0
    for dataset in datasets:
        everyone = [image for subset in SUBSETS for image in getattr(dataset, subset)]
        for subset in SUBSETS:
            lists[subset] += [Image(p, pid + first_pid, c + first_camid) for p, pid, c in getattr(dataset, subset)]
        distractors |= {pid + first_pid for pid in dataset.distractors}
        first_pid += 1 + max((image.pid for image in everyone), default=-1)
        first_camid += dataset.num_cameras
    return Dataset("+".join(d.name for d in datasets), datasets[0].folder.parent, **lists, num_cameras=first_camid,
                   protocol=" + ".join(d.protocol for d in datasets), distractors=frozenset(distractors))  # fmt: skip


def stop(message: str) -> None:
    raise InputError(message)


def read_dataset(folder: str | Path, split: int = 0, report: Report = stop) -> Dataset:
    """The dataset in `folder`, with entry `split` of splits.json (and of test.json).

    Each broken rule goes to `report` with file, entry and repair. The default raises InputError at the first; a
    report that returns gets them all, and what is broken is left out. JSON that cannot be read always raises.
    """
    folder = Path(folder)
    meta = read_json(folder / "meta.json", dict)
    num_cameras, places = read_identities(meta, folder / "meta.json", report)
    chosen = read_entry(folder / "splits.json", split)
    count, entry = len(meta["identities"]), f"{folder / 'splits.json'}: entry {split}"
    pids = {s: read_pids(chosen.get(s), f"{entry}, {s}", count, report) for s in SUBSETS}
    root = str(folder / "images")
    known = {name: Image(os.path.join(root, name), pid, camid) for name, (pid, camid) in places.items()}

    trainval = [image for image in known.values() if image.pid in pids["trainval"]]
    tests, protocol = read_test_lists(folder, meta, split, known, report)
    if tests is None:
        tests = {s: [image for image in known.values() if image.pid in pids[s]] for s in ("query", "gallery")}
    for subset, images in tests.items():
        if not images:
            report(f"{folder}: split {split} has no {subset} images; a test needs query and gallery")
    if "note" in meta and protocol != ALL_IMAGES:
        protocol = f"test.json: {meta['note']}"

    overlap = {i.pid for i in trainval} & {i.pid for images in tests.values() for i in images}
    if overlap:
        report(f"{entry}: {shortened(sorted(overlap))} are both in trainval and in "
               "the test lists; an identity belongs to one of them")  # fmt: skip
    check_files(trainval, tests, report)

    distractors = frozenset(i.pid for i in tests["gallery"]) - frozenset(i.pid for i in tests["query"])
    if "distractors" in meta:
        distractors = read_pids(meta["distractors"], f"{folder / 'meta.json'}: distractors", count, report)
    return Dataset(
        folder.resolve().name, folder, trainval, tests["query"], tests["gallery"], num_cameras, protocol, distractors
    )


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file whose outermost value is of `kind` (dict or list)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as e:
        raise MissingInput(f"{path} is not there; a dataset folder has images/, meta.json and splits.json") from e
    except json.JSONDecodeError as e:
        raise InputError(f"{path}: line {e.lineno}, column {e.colno}: not valid JSON ({e.msg}); was the file cut "
                         "short? Prepare or download it again") from e  # fmt: skip
    except (ValueError, RecursionError, OSError) as e:  # no UTF-8, a number of 5,000 digits
        raise InputError(f"{path} cannot be read as JSON: {e}") from e
    if not isinstance(content, kind):
        raise InputError(f"{path} holds {described(content)}, expected {'an object' if kind is dict else 'a list'}")
    return content


def read_identities(meta: dict, path: Path, report: Report) -> tuple[int, dict[str, tuple[int, int]]]:
    """The number of cameras, and (pid, camera) of each file name, in the order of meta.json."""
    identities = meta.get("identities")
    if not isinstance(identities, list):
        raise InputError(f"{path}: identities is {described(identities)}, expected identities[pid][camera] = [names]")
    most = max((len(cameras) for cameras in identities if isinstance(cameras, list)), default=0)
    num_cameras = meta.get("num_cameras", most)
    if not is_integer(num_cameras) or num_cameras < most or num_cameras < 1:
        report(f"{path}: num_cameras is {num_cameras!r}, but identities has {most} cameras; correct the number")
        num_cameras = most
    places: dict[str, tuple[int, int]] = {}
    for pid, cameras in enumerate(identities):
        for camid, names in enumerate(listed(cameras, f"{path}: identities[{pid}]", "a list of cameras", report)):
            entry = f"{path}: identities[{pid}][{camid}]"
            for name in listed(names, entry, "a list of file names", report):
                problem = name_problem(name)
                if problem is None and name in places:
                    problem = f"is listed already as pid {places[name][0]}, camera {places[name][1]}; keep one"
                if problem:
                    report(f"{entry}: {name!r} {problem}")
                else:
                    places[name] = (pid, camid)
    return num_cameras, places


def name_problem(name: Any) -> str | None:
    """What is wrong with a file name in the JSON, or None: it must stay inside images/."""
    if not isinstance(name, str) or not name:
        return "is no file name"
    if name.startswith("/") or ".." in name.split("/") or any(c in name for c in "\\:\0"):
        return "leaves the folder images/; names are relative to it, without '..'"
    return None


def read_entry(path: Path, split: int) -> dict:
    """One entry of splits.json or test.json."""
    entries = read_json(path, list)
    if not entries:
        raise InputError(f"{path} is an empty list; expected an object with the lists of each split")
    if not 0 <= split < len(entries):
        raise InputError(f"{path} has {len(entries)} entries, so --split {split} is not there; "
                         f"use --split 0 to {len(entries) - 1}")  # fmt: skip
    if not isinstance(entries[split], dict):
        raise InputError(f"{path}: entry {split} is {described(entries[split])}, expected an object")
    return entries[split]


def read_test_lists(folder: Path, meta: dict, split: int, known: dict[str, Image], report: Report):
    """({"query": images, "gallery": images}, protocol); None in place of the lists where there are no official ones."""
    path = folder / "test.json"
    if path.exists():
        chosen, protocol = read_entry(path, split), "official lists (test.json)"
        lists = {"query": chosen.get("query"), "gallery": chosen.get("gallery")}
    elif "query_fnames" in meta or "gallery_fnames" in meta:
        path, protocol = folder / "meta.json", "official lists (query_fnames and gallery_fnames of meta.json)"
        lists = {"query": meta.get("query_fnames"), "gallery": meta.get("gallery_fnames")}
    else:
        return None, ALL_IMAGES
    tests: dict[str, list[Image]] = {"query": [], "gallery": []}
    for subset, rows in lists.items():
        for number, row in enumerate(listed(rows, f"{path}: {subset}", "a list", report)):
            entry, (name, *place) = f"{path}: {subset}[{number}]", row if isinstance(row, list) and row else [row]
            image = known.get(name) if isinstance(name, str) else None
            if path.name == "test.json" and not (len(place) == 2 and all(map(is_integer, place))):
                report(f"{entry} is {row!r}, expected [file, pid, camera]")
            elif image is None:
                report(f"{entry}: {name!r} {name_problem(name) or 'is not among the identities of meta.json'}")
            elif place and place != [image.pid, image.camid]:
                report(f"{entry}: {name} has pid {place[0]}, camera {place[1]}, but pid {image.pid}, camera "
                       f"{image.camid} in meta.json; correct one of them")  # fmt: skip
            else:
                tests[subset].append(image)
    return tests, protocol


def check_files(trainval: list[Image], tests: dict[str, list[Image]], report: Report) -> None:
    """Reports each listed image that is not there, and takes it out of the lists."""
    lists = [trainval, *tests.values()]
    missing = {i.path for images in lists for i in images if not os.path.isfile(i.path)}
    for path in sorted(missing):
        report(f"{path} is listed but is not there ({len(missing):,} missing in all); put it back, or prepare the "
               "dataset again")  # fmt: skip
    for images in lists if missing else ():
        images[:] = [i for i in images if i.path not in missing]


def read_pids(values: Any, entry: str, count: int, report: Report) -> frozenset[int]:
    """The pids of a list, all of them 0 to count - 1."""
    pids = listed(values, entry, "a list of pids", report)
    for pid in pids:
        if not is_integer(pid):
            report(f"{entry}: {pid!r} is no pid (a whole number)")
        elif not 0 <= pid < count:
            report(f"{entry}: pid {pid} is out of range; meta.json has identities 0 to {count - 1}")
    return frozenset(filter(is_integer, pids))


def listed(value: Any, entry: str, expected: str, report: Report) -> list:
    """The value where it is a list; otherwise that is reported, and an empty list."""
    if isinstance(value, list):
        return value
    report(f"{entry} is {described(value)}, expected {expected}")
    return []


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def described(value: Any) -> str:
    """A JSON value as its kind, for messages."""
    kinds = {dict: "an object", list: "a list", str: f"text ({value!r:.40})", type(None): "missing"}
    return kinds.get(type(value), repr(value))


def shortened(values: list, most: int = 5) -> str:
    """'pids 1, 2, 3, ... (9 in all)'."""
    text = "pids " + ", ".join(map(str, values[:most]))
    return text if len(values) <= most else f"{text}, ... ({len(values)} in all)"
