"""python -m reid bench <subject>: measure speed and memory; compare ratios, not seconds."""

import importlib
from dataclasses import dataclass
from typing import Any

from reid.commands.flags import check_counts
from reid.config import DEVICES
from reid.variants import BACKBONES


@dataclass(frozen=True)
class Subject:
    """A benchmark: reid/bench/<its name>.py with run(arguments) -> texts to print."""

    help: str
    numbers: dict[str, int]  # flags and defaults
    flags: tuple[str, ...] = ()  # of FLAGS


STEP = {"h": 384, "w": 128, "batch_size": 64, "repeat": 5}
SUBJECTS = {
    "ranking": Subject(
        "compare our evaluator with the published one, and evaluate in tiles",
        {"queries": 3368, "gallery": 15913, "identities": 751, "cameras": 6, "width": 256, "repeat": 5},
        ("alone", "dtype"),
    ),
    "train": Subject(
        "compare a training step with the bare backbone and with a plain implementation",
        STEP | {"jobs": 1},
        ("backbone", "gpus", "device", "compile", "no_plain"),
    ),
    "extract": Subject(
        "extract descriptors with each engine and precision", STEP, ("backbone", "gpus", "device", "weights")
    ),
    "gallery": Subject(
        "search a large gallery and add to it",
        {"size": 1_000_000, "width": 256, "queries": 100, "repeat": 3},
        ("dtype",),
    ),
    "serve": Subject(
        "search over HTTP with 1, 8 and 32 clients; memory of the server",
        {"requests": 320, "size": 20_000, "h": 384, "w": 128, "repeat": 1},
        ("backbone", "weights"),
    ),
    "data": Subject(
        "load batches of images: one at a time, in threads, from the cache",
        {"h": 384, "w": 128, "images": 512, "batch_size": 64, "num_workers": 4, "repeat": 3},
    ),
    "rerank": Subject(
        "compare sparse k-reciprocal re-ranking with the dense implementation",
        {"queries": 500, "gallery": 3000, "identities": 150, "width": 256, "repeat": 5},
        ("alone",),
    ),
}
NUMBERS = {
    "h": "image height in pixels",
    "w": "image width in pixels",
    "batch_size": "images in a batch",
    "repeat": "runs per variant; the median is reported",
    "jobs": "instead, compare this number of trainings at the same time on the CPU with one",
    "queries": "query features",
    "gallery": "gallery features",
    "identities": "number of identities",
    "cameras": "number of cameras",
    "width": "width of a feature",
    "size": "entries of the gallery",
    "requests": "searches per number of clients",
    "images": "images to decode",
    "num_workers": "decoding threads",
}
FLAGS: dict[str, dict[str, Any]] = {
    "alone": {"action": "store_true", "help": "run only our implementation, for sizes that exceed the memory"},
    "no_plain": {"action": "store_true", "help": "skip the plain implementation"},
    "compile": {"action": "store_true", "help": "also measure torch.compile of the backbone"},
    "weights": {"default": "", "metavar": "FILE", "help": "measure this model (default: one with random weights)"},
    "dtype": {
        "choices": ("float32", "float16"),
        "default": "float32",
        "help": "type of the stored features (default float32)",
    },
    "backbone": {"choices": BACKBONES, "default": BACKBONES[0], "help": f"default {BACKBONES[0]}"},
    "device": {"choices": DEVICES, "default": "auto", "help": "default auto: a GPU if there is one"},
    "gpus": {
        "type": int,
        "nargs": 1,
        "default": [],
        "metavar": "N",
        "help": "GPU id (default: the first GPU, or the CPU)",
    },
}


def add_arguments(parser) -> None:
    subjects = parser.add_subparsers(dest="subject", metavar="subject", required=True)
    for name, subject in SUBJECTS.items():
        command = subjects.add_parser(name, help=subject.help, description=subject.help)
        for flag, default in subject.numbers.items():
            text = f"{NUMBERS[flag]} (default {default})"
            command.add_argument(f"--{flag}", type=int, default=default, metavar="N", help=text)
        for flag in subject.flags:
            command.add_argument(f"--{flag}", **FLAGS[flag])


def main(arguments) -> int:
    """Exit codes: 0 measured, 1 the variants give different results, 2 bad input."""
    check_counts(arguments, *SUBJECTS[arguments.subject].numbers)
    run = importlib.import_module(f"reid.bench.{arguments.subject}").run
    for text in run(arguments):
        print(text, flush=True)
    return 0
