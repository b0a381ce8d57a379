"""Datasets made ready: a prepared folder is opened, raw data found beside it is prepared on first use."""

import re
from collections.abc import Callable
from pathlib import Path

from reid.data.prepare import market
from reid.data.prepare.archive import Source, open_source
from reid.data.prepare.plan import Plan, assert_published, build, table, write
from reid.data.records import Dataset, read_dataset
from reid.errors import InputError, MissingInput

# name -> (how to read a source, words in the names of its archives, where it comes from)
READERS: dict[str, tuple[Callable[[Source], Plan], tuple[str, ...], str]] = {
    "market1501": (lambda s: market.plan(s, 6), ("market",), "Market-1501-v15.09.15.zip, linked from https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html"),
}  # fmt: skip


def open_dataset(name: str, dataset_path: str | Path, split: int = 0) -> Dataset:
    """The dataset `name` under dataset_path.

    A raw archive or folder of it that lies there is prepared first, and `demo` is drawn. Raises MissingInput, which
    says where to get the dataset, and InputError for one that is broken.
    """
    if re.fullmatch(r"[\w.-]+", name) is None or name.startswith("."):
        raise InputError(f"--dataset_type {name!r} is no folder name; give a folder under --dataset_path")
    folder = Path(dataset_path) / name
    if not (folder / "meta.json").exists():
        if name == "demo":
            from reid.data.demo import render_demo

            print(f"drawing the demo dataset into {folder}")
            build(folder, render_demo)
        else:
            source = find_raw(name, Path(dataset_path))
            if source is None:
                raise MissingInput(missing(name, folder))
            print(f"{folder} is not prepared yet; preparing it from {source}")
            prepare(name, source, dataset_path)
    return read_dataset(folder, split)


def prepare(name: str, source: str | Path, dataset_path: str | Path, link: bool = False) -> Dataset:
    """Makes dataset_path/name from an archive or folder, prints its counts, and returns it.

    link: images become links into the source folder instead of copies. What is prepared already is left as it is.
    Raises InputError when the source is damaged, unsafe, or has other counts than published.
    """
    if name not in READERS:
        raise InputError(f"no dataset {name!r} is known; known are {', '.join(READERS)}, folder (your own images)")
    folder = Path(dataset_path) / name
    if (folder / "meta.json").exists():
        dataset = read_dataset(folder)
        print(f"{folder} is prepared already (delete it to prepare it again)\n{dataset}")
        return dataset
    with open_source(source) as opened:
        plan = READERS[name][0](opened)
        print(table(name, plan))
        assert_published(name, plan, opened.path)
        build(folder, lambda temporary: write(name, plan, temporary, lambda wanted: opened.place(wanted, link)))
    return read_dataset(folder)


def find_raw(name: str, dataset_path: Path) -> Path | None:
    """Raw data of `name`: its own folder, else a folder, else an archive under dataset_path."""
    if name not in READERS or not dataset_path.is_dir():
        return None
    words = READERS[name][1]
    entries = sorted(p for p in dataset_path.iterdir() if not p.name.startswith("."))
    raw = [p for p in [dataset_path / name, *entries] if p.is_dir() and is_raw(p)]
    named = [p for p in [*raw, *entries] if any(w in p.name.lower() for w in words)]
    archives = [p for p in named if p.is_file() and p.name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz"))]
    named_folders = [p for p in raw if p in named]
    anonymous = [p for p in raw if name == "market1501" and not (p / "meta.json").exists()]
    return next(iter([*named_folders, *archives, *anonymous]), None)


def is_raw(folder: Path) -> bool:
    """bounding_box_train lies in the folder or one level deeper."""
    return any(next(folder.glob(f"{deep}{market.FOLDERS['trainval']}"), None) for deep in ("", "*/"))


def missing(name: str, folder: Path) -> str:
    known = name in READERS
    how = f"get {READERS[name][2]}, and put it into {folder.parent}" if known else "make it from your own images"
    return (
        f"dataset {name!r} is not there: {folder} has no meta.json, and {folder.parent} has no raw data of it. To get "
        f"it: {how}, or run: python -m reid prepare {name if known else 'folder'} --source <archive or folder>. To try "
        "the program without a download: --profile demo"
    )
