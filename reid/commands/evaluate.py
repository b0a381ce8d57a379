"""python -m reid evaluate: features -> distances -> ranking -> result. Without flags: the newest finished run."""

from dataclasses import dataclass
from typing import Any

from reid.commands import in_processes
from reid.commands.flags import add_flags, given_flags
from reid.config import Config
from reid.errors import InputError
from reid.profiles import from_flags, profile

OF_WEIGHTS = ("h", "w", "batch_size", "precision", "engine", "calibration", "max_loss", "num_workers")


@dataclass(frozen=True)
class Request:
    """The flags of a call. given: configuration flags. splits: numbers; () for the training's split, None for all."""

    given: dict[str, Any]
    splits: tuple[int, ...] | None

    @property
    def config(self) -> Config:
        """The configuration before the weights are read."""
        return from_flags(self.given, profile("paper").for_evaluation())


def add_arguments(parser) -> None:
    add_flags(parser, "evaluate")
    parser.add_argument(
        "--split",
        dest="splits",
        nargs="+",
        default=[],
        metavar="N",
        help="entries of splits.json, or all; several also give mean ± deviation (default: as trained)",
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
        refuse_unused(request)
    from reid.commands import scoring  # imports torch, so only after the flags are checked

    if asked.features:
        scoring.score_file(request)
        return 0
    return in_processes(scoring.score_weights, request, asked)


def refuse_unused(request: Request) -> None:
    """Raises InputError for flags that do nothing when features are scored."""
    given, asked = request.given, request.config
    if asked.pretrained_weights_dir:
        raise InputError("give --features or --weights, not both")
    if any(asked.occlude):
        raise InputError("--occlude needs images; give --weights instead of --features")
    if unused := [name for name in OF_WEIGHTS if name in given]:
        raise InputError(f"--{unused[0]} is for --weights; features have been extracted already")
    shown = ["split"] * (request.splits != ()) + [n for n in ("dataset_type", "dataset_path") if n in given]
    if shown and not asked.report:
        raise InputError(f"--{shown[0]} with --features only names the images of a report; add --report")
    if request.splits is None or len(request.splits) > 1 or len(asked.dataset_type) > 1:
        raise InputError("--features are of one dataset and one split; give one")


def parse_splits(words: list[str]) -> tuple[int, ...] | None:
    if words == ["all"]:
        return None
    numbers = [int(word) for word in words if word.isdecimal()]
    if len(set(numbers)) < len(words):
        raise InputError(f"--split {' '.join(words)}: give distinct numbers of entries of splits.json, or all")
    return tuple(sorted(numbers))
