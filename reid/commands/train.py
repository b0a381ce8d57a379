"""python -m reid train: train a model. Without flags: the paper's model on Market-1501."""

from dataclasses import replace
from pathlib import Path

from reid.commands import reported
from reid.commands.flags import add_flags, given_flags
from reid.config import Config
from reid.profiles import from_flags
from reid.runs import read_config


def add_arguments(parser) -> None:
    add_flags(parser, "train")


def main(arguments) -> int:
    """Trains in this process, or in one process per GPU.

    Exit codes: 0 trained, 1 the loss is not finite, 2 bad input, 130 stopped by a signal.
    """
    given = given_flags(arguments)
    stored = stored_config(given.get("resume", "newest"))
    if stored and given.keys() & {"device", "gpus"}:
        stored = replace(stored, device="auto", gpus=())  # the two depend on each other
    config = from_flags(given, stored)
    from reid.device import process_count  # imports torch, so only after the flags are checked
    from reid.processes import launch

    count = process_count(config.device, config.gpus)
    return launch(train_one, config, count) if count > 1 else train_one(config)


def train_one(config: Config) -> int:
    """The training of one process. Exit codes as in main."""
    from reid.training.trainer import train

    def work() -> int:
        train(config)
        return 0

    return reported(work, config.debug)


def stored_config(resume: str) -> Config | None:
    """The configuration of the run folder that --resume names, so that its flags need not be repeated."""
    return None if resume == "newest" else read_config(Path(resume))
