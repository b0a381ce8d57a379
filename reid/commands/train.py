"""python -m reid train: train a model. Without flags: the paper's model on Market-1501."""

import json
from pathlib import Path

from reid.commands import reported
from reid.commands.flags import add_flags, given_flags
from reid.config import Config
from reid.errors import InputError, MissingInput
from reid.profiles import from_flags


def add_arguments(parser) -> None:
    add_flags(parser, "train")


def main(arguments) -> int:
    """Trains in this process, or in one process per GPU.

    Exit codes: 0 trained, 1 the loss is not finite, 2 bad input, 130 stopped by a signal.
    """
    given = given_flags(arguments)
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
    except (InputError, ValueError) as e:
        raise InputError(f"{path} cannot be used: {e}") from e
