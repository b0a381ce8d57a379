"""python -m reid train: train a model. Without flags: the paper's model on Market-1501."""

from dataclasses import replace
from pathlib import Path

from reid.commands import in_processes
from reid.commands.flags import add_flags, given_flags
from reid.config import Config
from reid.errors import InputError
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
    asked_length = given.keys() & {"epochs", "max_steps"}
    if given.get("restart_schedule") and not (stored and asked_length):
        raise InputError("--restart_schedule goes with --resume RUN and a greater --epochs or --max_steps")
    if stored and asked_length:  # of the two, what was typed counts
        steps = stored.max_steps if "max_steps" in given else 0
        stored = replace(stored, restart_schedule=False, max_steps=steps)
    config = from_flags(given, stored)
    from reid.training.trainer import train  # imports torch, so only after the flags are checked

    return in_processes(train, config, config)


def stored_config(resume: str) -> Config | None:
    """The configuration of the run folder that --resume names, so that its flags need not be repeated."""
    return None if resume == "newest" else read_config(Path(resume))
