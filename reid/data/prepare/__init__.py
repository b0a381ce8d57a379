"""Opens prepared datasets, and prepares raw data on first use."""

import logging
import re
from pathlib import Path

from reid.data.prepare import own
from reid.data.prepare.archive import Source, open_source
from reid.data.prepare.known import ALIASES, DATASETS, find_raw
from reid.data.prepare.plan import Plan, assert_sound, table
from reid.data.prepare.split import plan_own
from reid.data.prepare.write import build, is_prepared, made_from, without_prepared, write
from reid.data.read import read_dataset
from reid.data.records import Dataset
from reid.errors import InputError, MissingInput

logger = logging.getLogger(__name__)


def open_dataset(name: str, dataset_path: str | Path, split: int = 0) -> Dataset:
    """The dataset `name` under dataset_path, with one entry of its splits.

    A raw archive or folder under dataset_path is prepared first; `demo` is drawn. Raises
    MissingInput with the origin of the dataset, and InputError for a broken one.
    """
    folder = folder_of(name, dataset_path)
    if (folder / "meta.json").exists():
        return read_dataset(folder, split)
    if name == "demo":
        from reid.data import demo

        logger.info(f"drawing the demo dataset into {folder}")
        plan = demo.plan()
        build(folder, lambda temporary: write(name, plan, temporary, demo.place))
    elif source := find_raw(folder.name, Path(dataset_path)):
        logger.info(f"{folder} is not prepared yet; preparing it from {source}")
        prepare(name, source, dataset_path)
    else:
        raise MissingInput(missing(folder))
    return read_dataset(folder, split)


def folder_of(name: str, dataset_path: str | Path) -> Path:
    if re.fullmatch(r"[\w.-]+", name) is None or name.startswith("."):
        raise InputError(f"{name!r} is not a dataset name; use letters, digits, '.', '-' and '_' (own images: --name)")
    return Path(dataset_path) / ALIASES.get(name, name)


def prepare(name: str, source: str | Path, dataset_path: str | Path, link: bool = False) -> Dataset:
    """Makes dataset_path/name from an archive or folder, and logs its counts.

    link: link the images instead of copying them. A prepared dataset is not changed. Raises
    InputError for a damaged or unsafe source, for counts other than the published ones, and if
    the dataset was prepared from other images.
    """
    folder = folder_of(name, dataset_path)
    if folder.name not in DATASETS:
        raise InputError(f"unknown dataset {name!r}; known are {', '.join(DATASETS)}, folder (your own images)")
    with open_source(source) as opened:
        raw = without_prepared(opened, folder)
        plan = DATASETS[folder.name].read(raw)
        plan.prepared = made_from(raw.path.resolve().name, raw, plan.images)
        if not is_prepared(folder, plan.prepared):
            make(folder, plan, raw, link)
    return read_dataset(folder)


def prepare_own(name: str, images: own.OwnImages, dataset_path: str | Path, link: bool = False) -> Dataset:
    """Makes dataset_path/name from a user's own images, and logs how it understands them.

    A dataset that was prepared from the same is not changed. Raises InputError for names and
    entries that it cannot read, and for a dataset that was prepared from something else.
    """
    folder = folder_of(name, dataset_path)
    if folder.name.lower() in (*DATASETS, "demo"):  # lower case: some file systems ignore case
        raise InputError(f"--name {name} is the name of a known dataset; choose another for your own images")
    with own.read(images, folder) as read:
        prepared = images.description(read)
        if not is_prepared(folder, prepared):
            bad = own.unreadable(read.source, [row.name for row in read.rows], images.skip_bad)
            plan, words = plan_own([row for row in read.rows if row.name not in bad], images.drawing)
            plan.prepared, plan.ignored = prepared, read.ignored
            plan.dropped += read.dropped
            if bad:
                plan.dropped["images that cannot be read (listed above)"] = len(bad)
            logger.info(words)
            make(folder, plan, read.source, link)
    return read_dataset(folder)


def make(folder: Path, plan: Plan, source: Source, link: bool) -> None:
    """Logs and checks the counts of a plan, then writes it as `folder`."""
    logger.info(table(folder.name, plan))
    assert_sound(folder.name, plan, source.path)
    if link and plan.place:
        raise InputError(f"{source.path} has its images inside a .mat file; they cannot be linked, use --images copy")
    place = plan.place or (lambda wanted: source.place(wanted, link))
    build(folder, lambda temporary: write(folder.name, plan, temporary, place))


def missing(folder: Path) -> str:
    how, name = "use your own images", f"folder --name {folder.name}"
    if folder.name in DATASETS:
        how, name = f"get {DATASETS[folder.name].origin}, and put it into {folder.parent}", folder.name
    return (
        f"dataset {folder.name!r} does not exist: {folder} has no meta.json, and {folder.parent} has no raw data "
        f"of it. To make it: {how}, or run: python -m reid prepare {name} --source <archive or folder>. "
        "To try the program without a download: --profile demo"
    )
