"""Train a model. Without flags: the paper's model on Market-1501; --profile demo for a first try."""

import json
import sys
from pathlib import Path

from reid.config import Config
from reid.errors import InputError, MissingInput, reported
from reid.flags import Parser, add_flags, given_flags
from reid.profiles import from_flags


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 trained, 1 the loss is not finite, 2 bad input, 130 stopped by a signal."""
    parser = Parser(prog="train.py", description=__doc__)
    add_flags(parser, "train")
    given = given_flags(parser.parse_args(argv))
    return reported(lambda: start(given), given.get("debug", False))


def start(given: dict) -> int:
    """Trains in this process, or in one for each of several GPUs."""
    config = from_flags(given, stored_config(given.get("resume", "newest")))
    import torch  # after the flags, so that typing errors answer at once

    from reid.processes import launch, world

    if len(config.gpus) > 1 and world().size == 1 and torch.cuda.is_available():
        return launch(train_one, config, len(config.gpus))
    return train_one(config)


def train_one(config: Config) -> int:
    """The training of one process. Exit codes as in main."""
    from reid.training.trainer import train

    def work() -> int:
        train(config)
        return 0

    return reported(work, config.debug)


def stored_config(resume: str) -> Config | None:
    """The configuration of the run folder that --resume names, so that its flags need not be repeated."""
    if resume == "newest":
        return None
    path = Path(resume) / "config.json"
    if not path.is_file():
        raise MissingInput(f"--resume {resume}: no run is there (no config.json)")
    try:
        return Config.from_json(json.loads(path.read_text()), str(path))
    except ValueError as e:
        raise InputError(f"{path} cannot be used: {e}") from e


if __name__ == "__main__":
    sys.exit(main())
