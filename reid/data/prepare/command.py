"""python -m reid prepare: a dataset from an archive or folder."""

import argparse
import time

from reid.data.prepare import READERS, open_dataset, prepare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help=f"{', '.join(READERS)}, or demo (drawn, no source)")
    parser.add_argument("--source", default="", help="zip, tar or folder (default: looked for under --dataset_path)")
    parser.add_argument("--dataset_path", default="./datasets", help="folder of the datasets (default ./datasets)")
    parser.add_argument("--images", choices=("copy", "link"), default="copy", help="copy the images, or link to them")


def main(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    if arguments.source:
        dataset = prepare(arguments.name, arguments.source, arguments.dataset_path, arguments.images == "link")
    else:
        dataset = open_dataset(arguments.name, arguments.dataset_path)
    print(f"{dataset}\nready in {time.perf_counter() - start:.1f} s: {dataset.folder}")
    return 0
