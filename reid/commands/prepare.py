"""python -m reid prepare: makes a dataset from an archive or folder."""

import argparse
import time
from pathlib import Path

from reid.data.prepare import open_dataset, prepare, prepare_own
from reid.data.prepare.known import DATASETS
from reid.data.prepare.own import OwnImages
from reid.errors import InputError

OWN = ("template", "test_share", "seed", "name")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", help=f"{', '.join(DATASETS)}; folder (your own images); or demo (drawn, needs no source)")
    add(
        "--source",
        help="zip, tar or folder (default: searched for under --dataset_path); for folder also a CSV "
        "or JSON list with path, pid and optionally camid",
    )
    add("--dataset_path", default="./datasets", help="folder of the datasets (default ./datasets)")
    add("--images", choices=("copy", "link"), default="copy", help="copy the images, or link to them (default copy)")
    add = parser.add_argument_group("your own images (prepare folder)").add_argument
    add("--name", help="name of the dataset (default: name of the source)")
    add(
        "--template",
        help="pattern of the image names, for example '{pid}_c{cam}_{}.jpg', where {} is any text; with "
        "'/' it is matched against the path (default: one folder per identity)",
    )
    add("--test_share", type=float, help="share of the identities in the test (default 0.5)")
    add("--seed", type=int, help="seed of the drawn split (default 0)")


def main(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    given = {key: value for key in OWN if (value := getattr(arguments, key)) is not None}
    source, link = arguments.source, arguments.images == "link"
    if arguments.dataset == "folder":
        if not source:
            raise InputError("prepare folder needs --source: a folder, an archive, or a CSV or JSON list")
        name = given.pop("name", Path(source).resolve().name.partition(".")[0])
        images = OwnImages(source=Path(source), **given)
        dataset = prepare_own(name, images, arguments.dataset_path, link)
    elif given:
        raise InputError(f"--{next(iter(given))} is only for your own images: python -m reid prepare folder")
    elif source:
        dataset = prepare(arguments.dataset, source, arguments.dataset_path, link)
    else:
        dataset = open_dataset(arguments.dataset, arguments.dataset_path)
    print(f"{dataset}\nready in {time.perf_counter() - start:.1f} s: {dataset.folder}")
    return 0
