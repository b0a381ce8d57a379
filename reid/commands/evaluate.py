"""python -m reid evaluate: features -> distances -> ranking -> result. Without flags: the newest finished run."""

from dataclasses import dataclass
from typing import Any

from reid.commands import reported
from reid.commands.flags import add_flags, given_flags
from reid.config import Config
from reid.errors import InputError
from reid.profiles import from_flags, profile


@dataclass(frozen=True)
class Request:
    """What was typed. given: configuration flags. splits: numbers; () for that of the training, None for all."""

    given: dict[str, Any]
    splits: tuple[int, ...] | None

    @property
    def config(self) -> Config:
        """Before the weights are known."""
        return from_flags(self.given, profile("paper").for_evaluation())


def add_arguments(parser) -> None:
    add_flags(parser, "evaluate")
    parser.add_argument(
        "--split",
        dest="splits",
        nargs="+",
        default=[],
        metavar="N",
        help="entries of splits.json, or all; of several also the mean ± deviation (default: that of the training)",
    )


def main(arguments) -> int:
    """Scores features, or weights in this process or in one process per GPU. Exit codes: 0 scored, 2 bad input."""
    request = Request(given_flags(arguments), parse_splits(arguments.splits))
    asked = request.config
    if asked.report:
        from reid.report import figures

        with figures.styled():  # raises before the long work
            pass
    if asked.features:
        if asked.pretrained_weights_dir:
            raise InputError("--features scores a file, --weights makes one: give one of the two")
        if any(asked.occlude):
            raise InputError("--occlude covers images, and --features has none: give --weights")
        from reid.commands.scoring import score_file

        score_file(request)
        return 0
    from reid.device import process_count  # imports torch: after the flags, so that typing errors answer at once
    from reid.processes import launch

    count = process_count(asked.device, asked.gpus)
    return launch(evaluate_one, request, count) if count > 1 else evaluate_one(request)


def parse_splits(words: list[str]) -> tuple[int, ...] | None:
    if words == ["all"]:
        return None
    numbers = [int(word) for word in words if word.isdecimal()]
    if len(set(numbers)) < len(words):
        raise InputError(f"--split {' '.join(words)}: give numbers of entries of splits.json, each once, or all")
    return tuple(numbers)


def evaluate_one(request: Request) -> int:
    """One process's part of the work."""
    from reid.commands.scoring import score_weights

    def work() -> int:
        score_weights(request)
        return 0

    return reported(work, request.given.get("debug", False))
