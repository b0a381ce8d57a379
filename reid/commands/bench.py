"""python -m reid bench <subject>: one small file a subject, with add_arguments(parser) and main(args)."""

import importlib

from reid.errors import InputError

SUBJECTS = {
    "ranking": "our ranking beside the published evaluator, and whole evaluations in tiles",
    "train": "the training step beside the bare backbone's and the plain form's, and where its time goes",
    "extract": "extraction of descriptors in each precision, and made ready for use",
    "gallery": "a gallery of a million entries searched and changed",
    "data": "images to batches: one at a time, in threads, from the cache",
    "rerank": "sparse k-reciprocal re-ranking beside the dense form",
}


def add_arguments(parser) -> None:
    subjects = parser.add_subparsers(dest="subject", metavar="subject", required=True)
    for name, what in SUBJECTS.items():
        importlib.import_module(f"reid.bench.{name}").add_arguments(
            subjects.add_parser(name, help=what, description=what)
        )


def main(arguments) -> int:
    for name, value in vars(arguments).items():
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise InputError(f"--{name} {value} is too small; the least is 1")
    return importlib.import_module(f"reid.bench.{arguments.subject}").main(arguments)
