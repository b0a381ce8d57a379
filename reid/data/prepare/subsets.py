"""The names of subsets, and the folders of a source that have such a name."""

import re
from collections import Counter, defaultdict
from pathlib import PurePosixPath
from typing import NamedTuple

from reid.data.messages import indented, shortened
from reid.data.prepare.archive import Source
from reid.errors import InputError

KINDS = {
    "train": ("train", "training", "trainval", "train val", "trainset"),
    "val": ("val", "valid", "validation", "valset"),
    "query": ("query", "queries", "probe", "probes", "test query", "test probe"),
    "gallery": ("gallery", "galleries", "test gallery"),
    "test": ("test", "testing", "testset"),
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
    text = " ".join(word for word in words_of(name) if word not in FILLERS)
    return next((kind for kind, names in KINDS.items() if text in names), "")


def words_of(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", name.lower()) if word]


def locate(source: Source, names: list[str], nested: bool = True) -> tuple[dict[str, Place], Counter]:
    """({name: its place}, {reason: images that are left out}).

    If no folder has the name of a subset, all places have the subset "". Otherwise the last
    such folder of a path counts, or only the first folder if not `nested`. Raises InputError
    for images outside the subsets, and for a subset that is in several folders.
    """
    places = {name: place_of(name, nested) for name in names}
    dropped: Counter = Counter()
    outside: Counter = Counter()  # folders without a subset
    folders_of: dict[str, set[str]] = defaultdict(set)
    for place in places.values():
        folders = place.below.parts[:-1]
        if place.subset:
            folders_of[place.subset].add(place.folder)
        elif extra := next((f for f in folders if " ".join(words_of(f)) in EXTRAS), ""):
            dropped[f"in {extra}/, which is not part of the test"] += 1
        else:
            outside["/".join(folders) or "."] += 1
    if not folders_of:
        return places, Counter()
    if outside:
        inside = ", ".join(sorted(set().union(*folders_of.values())))
        lines = [f"{folder}/: {count:,} images" for folder, count in sorted(outside.items())]
        raise InputError(
            f"{source.path} has subset folders ({inside}) and images outside of them ({outside.total():,}); "
            "move or remove the latter. The name of a subset is never an identity; for an identity of such a name, "
            f"rename the folder or use a list:{indented(lines)}"
        )
    copies = find_copies(source, places, folders_of["train"])
    if copies:
        dropped["of train and val, which are in train_all as well"] += len(copies)
    elif several := [kind for kind in KINDS if len(folders_of[kind]) > 1]:
        lines = [f"{kind}: {shortened(sorted(folders_of[kind]), 10)}" for kind in several]
        raise InputError(
            f"{source.path} has several folders for one subset; give the folder above one of them as --source, "
            f"or rename the others:{indented(lines)}"
        )
    return {name: place for name, place in places.items() if place.subset and name not in copies}, dropped


def place_of(name: str, nested: bool) -> Place:
    *folders, file = PurePosixPath(name).parts
    known = [i for i, folder in enumerate(folders) if subset_of(folder)]
    if not known:
        return Place("", "", PurePosixPath(name))
    last = known[-1] if nested else known[0]
    below = PurePosixPath(*folders[last + 1 :], file)
    return Place(subset_of(folders[last]), "/".join(folders[: last + 1]), below)


def find_copies(source: Source, places: dict[str, Place], folders: set[str]) -> set[str]:
    """Images of train/ and val/ that are in train_all/ too, where a source has all three. folders: of train."""
    whole = {folder for folder in folders if "all" in words_of(PurePosixPath(folder).name)}
    if len(whole) != 1 or len(folders) != 2:
        return set()
    complete = {(place.below, source.sizes[name]) for name, place in places.items() if place.folder in whole}
    others = {n: p for n, p in places.items() if p.subset in ("train", "val") and p.folder not in whole}
    return {name for name, place in others.items() if (place.below, source.sizes[name]) in complete}
