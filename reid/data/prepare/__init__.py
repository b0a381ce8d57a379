"""Datasets made ready: a prepared folder is opened, raw data found beside it is prepared on first use."""

import logging
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from reid.data.prepare import cuhk03, market, msmt17, own
from reid.data.prepare.archive import ARCHIVES, IMAGES, Source, open_source
from reid.data.prepare.plan import Plan, assert_sound, build, table, write
from reid.data.records import Dataset, read_dataset
from reid.errors import InputError, MissingInput

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """A dataset of the field: how to read it, how to recognise its raw data under --dataset_path, where to get it."""

    read: Callable[[Source], Plan]
    word: str  # in the lower-case names of its folders and archives
    markers: tuple[str, ...]  # folders or files at most two levels below
    origin: str
    without: str = "/"  # not in those names


MARKET, NP = (market.FOLDERS["trainval"],), "zhunzhong07/person-re-ranking on GitHub (CUHK03-NP)"
CUHK = "cuhk03_release.zip from the CUHK Person Re-identification page, with the protocol file of "
CUHK_FILES = ("cuhk-03.mat", "labeled", "detected")
MSMT = "MSMT17, on request from its authors (pkuvmc.com)"
DATASETS = {
    "market1501": Known(lambda s: market.plan_with_distractors(s, 6), "market", MARKET, "Market-1501-v15.09.15.zip, "
                        "linked from https://zheng-lab-anu.github.io/Project/project_reid.html"),
    "dukemtmc": Known(lambda s: market.plan(s, 8), "duke", MARKET, "DukeMTMC-reID.zip (withdrawn by its authors, no "
                      "official source any more)", without="occlu"),
    "occluded_duke": Known(lambda s: market.plan(s, 8), "occluded", MARKET, "Occluded-DukeMTMC by the instructions of "
                           "lightas/Occluded-DukeMTMC-Dataset on GitHub (it needs DukeMTMC-reID, withdrawn)"),
    "cuhk03": Known(lambda s: cuhk03.plan(s, "labeled"), "cuhk", CUHK_FILES, CUHK + NP),
    "cuhk03_detected": Known(lambda s: cuhk03.plan(s, "detected"), "cuhk", CUHK_FILES, CUHK + NP),
    "cuhk03_classic": Known(lambda s: cuhk03.plan_classic(s, "labeled"), "cuhk", CUHK_FILES[:1], CUHK + NP),
    "cuhk03_classic_detected": Known(lambda s: cuhk03.plan_classic(s, "detected"), "cuhk", CUHK_FILES[:1], CUHK + NP),
    "msmt17_v1": Known(lambda s: msmt17.plan(s, "v1"), "msmt17", ("train",), MSMT, without="v2"),
    "msmt17_v2": Known(lambda s: msmt17.plan(s, "v2"), "msmt17", ("mask_train_v2",), MSMT, without="v1"),
}  # fmt: skip
ALIASES = {"cuhk03_labeled": "cuhk03", "cuhk03_classic_labeled": "cuhk03_classic"}


def open_dataset(name: str, dataset_path: str | Path, split: int = 0) -> Dataset:
    """The dataset `name` under dataset_path, with one entry of its splits.

    A raw archive or folder of it that lies there is prepared first, and `demo` is drawn. Raises MissingInput, which
    says where to get the dataset, and InputError for one that is broken.
    """
    folder = folder_of(name, dataset_path)
    if not (folder / "meta.json").exists():
        if name == "demo":
            from reid.data.demo import render_demo

            logger.info(f"drawing the demo dataset into {folder}")
            build(folder, render_demo)
        else:
            source = find_raw(folder.name, Path(dataset_path))
            if source is None:
                raise MissingInput(missing(folder))
            logger.info(f"{folder} is not prepared yet; preparing it from {source}")
            prepare(name, source, dataset_path)
    return read_dataset(folder, split)


def folder_of(name: str, dataset_path: str | Path) -> Path:
    if re.fullmatch(r"[\w.-]+", name) is None or name.startswith("."):
        raise InputError(f"{name!r} is no dataset name; use letters, digits, '.', '-' and '_' (own images: --name)")
    return Path(dataset_path) / ALIASES.get(name, name)


def prepare(name: str, source: str | Path, dataset_path: str | Path, link: bool = False) -> Dataset:
    """Makes dataset_path/name from an archive or folder, prints its counts, and returns it.

    link: images become links into the source folder instead of copies. What is prepared already is left as it is.
    Raises InputError when the source is damaged, unsafe, or has other counts than published.
    """
    folder = folder_of(name, dataset_path)
    if folder.name not in DATASETS:
        raise InputError(f"no dataset {name!r} is known; known are {', '.join(DATASETS)}, folder (your own images)")
    if is_prepared(folder):
        return read_dataset(folder)
    with open_source(source) as opened:
        plan = DATASETS[folder.name].read(opened)
        return make(folder, plan, opened, link)


def prepare_own(
    name: str,
    source: str | Path,
    dataset_path: str | Path,
    link: bool = False,
    template: str = "",
    test_share: float = 0.5,
    seed: int = 0,
) -> Dataset:
    """Makes dataset_path/name from a user's own images: a folder or archive, or a CSV or JSON list (see own.py).

    Prints what it understood before it writes. Raises InputError for what it does not understand.
    """
    folder = folder_of(name, dataset_path)
    if folder.name in DATASETS or name == "demo":
        raise InputError(f"--name {name} is the name of a known dataset; choose another for your own images")
    if not 0 < test_share < 1:
        raise InputError(f"--test_share {test_share} is not between 0 and 1")
    if is_prepared(folder):
        return read_dataset(folder)
    is_list = Path(source).suffix.lower() in own.LISTS and Path(source).is_file()
    if is_list and template:
        raise InputError("--template is for folders and archives; a list names the identities itself")
    with nullcontext() if is_list else open_source(source) as opened:
        rows, ignored = (own.rows_of_list(Path(source)), []) if is_list else own.rows_of_source(opened, template)
        if not rows:
            raise InputError(f"{source} has no images ({', '.join(IMAGES)})")
        plan, words = own.plan(rows, test_share, seed)
        plan.ignored = ignored
        logger.info(words)
        return make(folder, plan, own.source_of_list(Path(source), rows) if is_list else opened, link)


def is_prepared(folder: Path) -> bool:
    if (folder / "meta.json").exists():
        logger.info(f"{folder} is prepared already; delete it to prepare it again")
        return True
    return False


def make(folder: Path, plan: Plan, source: Source, link: bool) -> Dataset:
    """Prints and asserts the counts of a plan, then writes it as `folder`."""
    logger.info(table(folder.name, plan))
    assert_sound(folder.name, plan, source.path)
    if link and plan.place:
        raise InputError(f"{source.path} has its images inside a .mat file; they cannot be linked, use --images copy")
    place = plan.place or (lambda wanted: source.place(wanted, link))
    build(folder, lambda temporary: write(folder.name, plan, temporary, place))
    return read_dataset(folder)


def find_raw(name: str, dataset_path: Path) -> Path | None:
    """Raw data of a known dataset under dataset_path: its own folder, a folder or an archive with its name in the
    name; for Market-1501, whose form others share, at last any folder of that form."""
    if name not in DATASETS or not dataset_path.is_dir():
        return None
    known = DATASETS[name]
    entries = sorted(p for p in dataset_path.iterdir() if not p.name.startswith(".") and not (p / "meta.json").exists())
    patterns = [deep + marker for deep in ("", "*/", "*/*/") for marker in known.markers]
    folders = [p for p in entries if p.is_dir() and any(next(p.glob(pattern), None) for pattern in patterns)]
    named = [p for p in entries if known.word in p.name.lower() and known.without not in p.name.lower()]
    archives = [p for p in named if p.is_file() and p.name.lower().endswith(ARCHIVES)]
    own_folder = [p for p in folders if p.name == name]
    others = folders if name == "market1501" else []
    return next(iter([*own_folder, *(p for p in folders if p in named), *archives, *others]), None)


def missing(folder: Path) -> str:
    known = folder.name in DATASETS
    how = f"get {DATASETS[folder.name].origin}, and put it into {folder.parent}" if known else "use your own images"
    return (
        f"dataset {folder.name!r} is not there: {folder} has no meta.json, and {folder.parent} has no raw data of it. "
        f"To make it: {how}, or run: python -m reid prepare {folder.name if known else f'folder --name {folder.name}'} "
        "--source <archive or folder>. To try the program without a download: --profile demo"
    )
