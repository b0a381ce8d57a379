"""The command line, made from the configuration's fields."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

from reid.config import Config, closest


class Parser(argparse.ArgumentParser):
    """argparse that suggests the nearest flag for an unknown one."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message):
        """Without the usage, which would bury the message under a page of flags."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_args(self, args=None, namespace=None):
        namespace, rest = self.parse_known_args(args, namespace)
        if rest:
            parsers = [self, *(p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values())]
            flags = [s for parser in parsers for action in parser._actions for s in action.option_strings]
            self.error(f"unknown argument {rest[0]!r}{closest(rest[0].split('=')[0], flags)}; --help lists all")
        return namespace


def add_flags(parser: argparse.ArgumentParser, script: str) -> None:
    """The configuration's flags of one script ('train' or 'evaluate'), grouped by room."""
    groups: dict[str, Any] = {}
    for f in fields(Config):
        if script not in f.metadata["scripts"]:
            continue
        room = groups.setdefault(f.metadata["room"], parser.add_argument_group(f.metadata["room"]))
        many = isinstance(f.default, tuple)
        default = " ".join(map(str, f.default)) if many else f.default
        choices = f.metadata["choices"]
        text = f.metadata["help"] + (f"; one of {', '.join(map(str, choices))}" if choices else "")
        weights_say = script == "evaluate" and f.name in ("h", "w")
        default = "as the weights were trained" if weights_say else default
        text += "" if default in ("", False) else f" (default {default})"
        names = ["--" + f.name] + (["--weights"] if f.name == "pretrained_weights_dir" else [])
        common = {"help": text, "default": argparse.SUPPRESS}  # what was not typed stays away
        if f.type is bool:
            room.add_argument(*names, action="store_true", **common)
        elif f.name == "resume":
            room.add_argument(*names, nargs="?", const="newest", metavar="RUN", **common)
        else:
            kind: Callable = get_args(f.type)[0] if many else type(f.default)
            metavar = kind.__name__.upper()
            room.add_argument(*names, type=kind, nargs="+" if many else None, metavar=metavar, **common)
        if f.name == "train_set":
            for flag, value in (("--combine_trainval", "trainval"), ("--no-combine_trainval", "train")):
                common["help"] = f"the same as --train_set {value}"
                room.add_argument(flag, dest="train_set", action="store_const", const=value, **common)


def given_flags(namespace: argparse.Namespace) -> dict[str, Any]:
    """The typed flags of the configuration, as its values."""
    typed = {f.name: getattr(namespace, f.name) for f in fields(Config) if hasattr(namespace, f.name)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in typed.items()}


def to_flags(config: Config, base: Config) -> list[str]:
    """The training flags that make `config` out of `base`, as they are typed."""
    argv = []
    for f in fields(Config):
        value = getattr(config, f.name)
        if "train" in f.metadata["scripts"] and value != getattr(base, f.name):
            values = value if isinstance(value, tuple) else () if f.type is bool else (value,)
            argv += ["--" + f.name, *map(str, values)]
    return argv
