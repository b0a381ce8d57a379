"""python -m reid prepare: makes a dataset from an archive or folder."""

import argparse
import time
from pathlib import Path
from typing import Any

from reid.data.prepare import open_dataset, prepare, prepare_own
from reid.data.prepare.known import DATASETS
from reid.data.prepare.layouts import LAYOUTS
from reid.data.prepare.own import PARTS, OwnImages
from reid.data.prepare.split import TEST_SHARE, Drawing
from reid.errors import InputError

OWN = ("name", *PARTS, "template", "layout", "test_share", "seed", "test_only", "skip_bad")
DRAWING = ("test_share", "seed", "test_only")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", help=f"{', '.join(DATASETS)}; folder (your own images); or demo (drawn, needs no source)")
    add(
        "--source",
        help="zip, tar or folder (default: searched for under --dataset_path); for folder also a CSV or JSON list "
        "with path, pid and optionally camid, subset and sequence",
    )
    add("--dataset_path", default="./datasets", help="folder of the datasets (default ./datasets)")
    add("--images", choices=("copy", "link"), default="copy", help="copy the images, or link to them (default copy)")
    add = parser.add_argument_group("your own images (prepare folder)").add_argument
    add("--name", help="name of the dataset (default: name of the source)")
    for part in PARTS:
        add(f"--{part}", metavar="DIR", help=f"folder of the {part} images, instead of --source")
    add(
        "--template",
        help="pattern of the image names, for example '{pid}_c{cam}_{}.jpg' or '{pid:4}{cam:3}.png', of {pid}, {cam}, "
        "{seq}, {subset}, {} for any text, and widths; with '/' it is matched against the path (default: one folder "
        "per identity)",
    )
    add("--layout", choices=LAYOUTS, help="market: subset folders with names of Market-1501 (0002_c1s1_000451_03.jpg)")
    add("--test_only", action="store_true", default=None, help="make a test set without training images")
    add(
        "--test_share",
        type=float,
        help=f"share of the identities with a match that a drawn test gets (default {TEST_SHARE})",
    )
    add("--seed", type=int, help="seed of a drawn split or drawn queries (default 0)")
    add("--skip_bad", action="store_true", default=None, help="leave out images that cannot be read, and list them")


def main(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    given = {key: value for key in OWN if (value := getattr(arguments, key)) is not None}
    source, link = arguments.source, arguments.images == "link"
    if arguments.dataset == "folder":
        name, images = own_images(source, given)
        dataset = prepare_own(name, images, arguments.dataset_path, link)
    elif given:
        raise InputError(f"--{next(iter(given))} is only for your own images: python -m reid prepare folder")
    elif source:
        dataset = prepare(arguments.dataset, source, arguments.dataset_path, link)
    else:
        dataset = open_dataset(arguments.dataset, arguments.dataset_path)
    print(f"{dataset}\nready in {time.perf_counter() - start:.1f} s: {dataset.folder}")
    return 0


def own_images(source: str | None, given: dict[str, Any]) -> tuple[str, OwnImages]:
    """(name of the dataset, the images) of the flags. Raises InputError."""
    drawing = Drawing(**{key: given.pop(key) for key in DRAWING if key in given})
    parts = {part: Path(given.pop(part)) for part in PARTS if part in given}
    name = given.pop("name", None)
    if not source and not parts:
        raise InputError(
            "prepare folder needs --source (a folder, an archive, or a CSV or JSON list), or --train, --query and "
            "--gallery"
        )
    if not name and not source:
        raise InputError("--train, --query and --gallery need --name, the name of the dataset")
    settings: dict[str, Any] = {"source": Path(source) if source else None, **parts, **given}
    images = OwnImages(drawing=drawing, **settings)
    return name or Path(source or "").resolve().name.partition(".")[0], images
