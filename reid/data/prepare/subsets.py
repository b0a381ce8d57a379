"""The names of subsets, and the folders of a source that have such a name."""

import re
from collections import Counter, defaultdict
from pathlib import PurePosixPath
from typing import NamedTuple

from reid.data.messages import indented, shortened
from reid.data.prepare.archive import Source
from reid.errors import InputError

KINDS = ("train", "val", "query", "gallery", "test")
WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "train val": "train",
    "trainset": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "valset": "val",
    "query": "query",
    "queries": "query",
    "probe": "query",
    "probes": "query",
    "test query": "query",
    "test probe": "query",
    "gallery": "gallery",
    "galleries": "gallery",
    "test gallery": "gallery",
    "test": "test",
    "testing": "test",
    "testset": "test",
}
# words around them: bounding_box_train, image_query, train_all, mask_test_v2, Test-Set
FILLERS = {"all", "bbox", "bounding", "box", "image", "images", "img", "imgs", "mask", "set", "v1", "v2"}
# folders beside the subsets of Market-1501 and of its copies that hold other images
EXTRAS = {"gt bbox", "gt query", "multi query"}
SEEN = "train, val, query, gallery, test (also bounding_box_train, image_query and the like)"


class Place(NamedTuple):
    """Where an image is: its subset ("" if none), the folder of the subset, and the path below it."""

    subset: str
    folder: str
    below: PurePosixPath


def subset_of(name: str) -> str:
    """The subset with this name, or "".

    >>> [subset_of(name) for name in ("bounding_box_train", "Val", "image_query", "anna")]
    ['train', 'val', 'query', '']
    """
    return WORDS.get(" ".join(word for word in words_of(name) if word not in FILLERS), "")


def words_of(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", name.lower()) if word]


def locate(source: Source, names: list[str], nested: bool = True) -> tuple[dict[str, Place], Counter]:
    """({name: its place}, {reason: images that are left out}).

    If no folder has the name of a subset, all places have the subset "". Otherwise the last
    such folder of a path counts, or only the first folder if not `nested`. Raises InputError
    for images outside the subsets, and for a subset that is in several folders.
    """
    places = {name: place_of(name, nested) for name in names}
    if not any(place.subset for place in places.values()):
        return places, Counter()
    dropped: Counter = Counter()
    outside: Counter = Counter()  # folders without a subset
    for name in [name for name in names if not places[name].subset]:
        folders = PurePosixPath(name).parts[:-1]
        del places[name]
        if extra := next((f for f in folders if " ".join(words_of(f)) in EXTRAS), ""):
            dropped[f"in {extra}/, which is not part of the test"] += 1
        else:
            outside["/".join(folders) or "."] += 1
    folders_of: dict[str, set[str]] = defaultdict(set)
    for place in places.values():
        folders_of[place.subset].add(place.folder)
    if outside:
        inside = ", ".join(sorted(folder for some in folders_of.values() for folder in some))
        lines = [f"{folder}/: {count:,} images" for folder, count in sorted(outside.items())]
        raise InputError(
            f"{source.path} has subset folders ({inside}) and images outside of them ({sum(outside.values()):,}); "
            "move or remove the latter. The name of a subset is never an identity; for a person of such a name, rename "
            f"the folder or use a list:{indented(lines)}"
        )
    copies = find_copies(source, places, folders_of)
    if copies:
        dropped["of train and val, which are in train_all as well"] += len(copies)
        places = {name: place for name, place in places.items() if name not in copies}
    elif several := [s for s in KINDS if len(folders_of[s]) > 1]:
        lines = [f"{s}: {shortened(sorted(folders_of[s]), 10)}" for s in several]
        raise InputError(
            f"{source.path} has several folders for one subset; give the folder above one of them as --source, "
            f"or rename the others:{indented(lines)}"
        )
    return places, dropped


def place_of(name: str, nested: bool) -> Place:
    *folders, file = PurePosixPath(name).parts
    known = [i for i, folder in enumerate(folders) if subset_of(folder)]
    if not known:
        return Place("", "", PurePosixPath(name))
    last = known[-1] if nested else known[0]
    below = PurePosixPath(*folders[last + 1 :], file)
    return Place(subset_of(folders[last]), "/".join(folders[: last + 1]), below)


def find_copies(source: Source, places: dict[str, Place], folders_of: dict[str, set[str]]) -> set[str]:
    """Images of train/ and val/ that are in train_all/ too, where a source has all three."""
    whole = {folder for folder in folders_of["train"] if "all" in words_of(PurePosixPath(folder).name)}
    if len(whole) != 1 or len(folders_of["train"]) != 2:
        return set()
    complete = {(p.below, source.sizes[name]) for name, p in places.items() if p.folder in whole}
    others = {n: p for n, p in places.items() if p.subset in ("train", "val") and p.folder not in whole}
    return {name for name, place in others.items() if (place.below, source.sizes[name]) in complete}
