"""python -m reid prepare: a dataset from an archive or folder."""

import argparse
import time
from pathlib import Path

from reid.data.prepare import DATASETS, open_dataset, prepare, prepare_own
from reid.errors import InputError

OWN = ("template", "test_share", "seed", "name")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help=f"{', '.join(DATASETS)}; folder (your own images); or demo (drawn, no source)")
    parser.add_argument("--source", help="zip, tar or folder (default: looked for under --dataset_path); for folder "
                        "also a CSV or JSON list with path, pid and maybe camid")  # fmt: skip
    parser.add_argument("--dataset_path", default="./datasets", help="folder of the datasets (default ./datasets)")
    parser.add_argument("--images", choices=("copy", "link"), default="copy", help="copy the images (default), or link")
    own = parser.add_argument_group("your own images (prepare folder)")
    own.add_argument("--name", help="name of the dataset (default: that of the source)")
    own.add_argument("--template", help="names of the images, as '{pid}_c{cam}_{}.jpg', where {} is any text; with "
                     "'/' it is matched to the path (default: one folder an identity)")  # fmt: skip
    own.add_argument("--test_share", type=float, help="share of the identities in the test (default 0.5)")
    own.add_argument("--seed", type=int, help="of the drawn split (default 0)")


def main(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    own = {key: value for key in OWN if (value := getattr(arguments, key)) is not None}
    source, link = arguments.source, arguments.images == "link"
    if arguments.dataset == "folder":
        if not source:
            raise InputError("prepare folder needs --source: a folder, an archive, or a CSV or JSON list")
        name = own.pop("name", Path(source).resolve().name.partition(".")[0])
        dataset = prepare_own(name, source, arguments.dataset_path, link, **own)
    elif own:
        raise InputError(f"--{next(iter(own))} is only for your own images: python -m reid prepare folder")
    elif source:
        dataset = prepare(arguments.dataset, source, arguments.dataset_path, link)
    else:
        dataset = open_dataset(arguments.dataset, arguments.dataset_path)
    print(f"{dataset}\nready in {time.perf_counter() - start:.1f} s: {dataset.folder}")
    return 0
