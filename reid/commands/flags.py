"""Command-line flags, generated from the configuration's fields."""

import argparse
from collections.abc import Iterator
from dataclasses import Field, fields
from typing import Any, get_args

from reid.config import Config, closest, value_text
from reid.errors import InputError

AS_TRAINED = ("h", "w", "dataset_type")  # evaluate takes them from the weights


class Parser(argparse.ArgumentParser):
    """argparse that suggests the nearest flag for an unknown one."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message):
        """Prints the message without the long usage text."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def parse_args(self, args=None, namespace=None):
        namespace, rest = self.parse_known_args(args, namespace)
        if rest:
            flag, known = rest[0].split("=")[0], list(all_flags(self))
            near = " (give it after the command)" if flag in known else others(flag) or closest(flag, known)
            command = " ".join(filter(None, (self.prog, getattr(namespace, "command", ""))))
            self.error(f"unknown argument {rest[0]!r}{near}; {command} --help lists all")
        return namespace


def others(flag: str) -> str:
    """' (a flag of evaluate, extract)' for a configuration flag of other commands, or nothing."""
    commands = [s for f in fields(Config) if "--" + f.name == flag for s in f.metadata["scripts"]]
    return f" (a flag of {', '.join(commands)})" if commands else ""


def all_flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The flags of a parser and of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from all_flags(child)


def add_flags(parser: argparse.ArgumentParser, script: str, needs_weights: bool = False) -> None:
    """Adds the configuration's flags of one command, by section. Flags that are not given are not in the namespace."""
    groups: dict[str, Any] = {}
    for f in fields(Config):
        if script not in f.metadata["scripts"]:
            continue
        section = f.metadata["section"]
        if section not in groups:
            title = "model" if section == "training" and script != "train" else section
            groups[section] = parser.add_argument_group(title)
        names = ["--" + f.name]
        if f.name == "pretrained_weights_dir":
            names.append("--weights")
        required = needs_weights and "--weights" in names
        kind = settings_of(f) | {"required": required, "default": argparse.SUPPRESS}
        groups[section].add_argument(*names, help=help_of(f, script), **kind)
        if f.name == "train_set":
            for flag, value in (("--combine_trainval", "trainval"), ("--no-combine_trainval", "train")):
                same = {"dest": f.name, "const": value, "default": argparse.SUPPRESS}
                groups[section].add_argument(flag, action="store_const", help=f"same as --train_set {value}", **same)


def settings_of(f: Field) -> dict[str, Any]:
    """The arguments of add_argument that depend on a field's type."""
    if f.type is bool:
        return {"action": "store_true"}
    if f.name == "resume":
        return {"nargs": "?", "const": "newest", "metavar": "RUN"}
    many = isinstance(f.default, tuple)
    kind: type = get_args(f.type)[0] if many else type(f.default)
    return {"type": kind, "nargs": "+" if many else None, "metavar": kind.__name__.upper()}


def help_of(f: Field, script: str) -> str:
    """A field's help text, its choices and its default."""
    text = f.metadata["help"]
    if choices := f.metadata["choices"]:
        text += f"; one of {', '.join(map(str, choices))}"
    default = value_text(f.default)
    if script == "evaluate" and f.name in AS_TRAINED:
        default = "as the weights were trained"
    elif script == "evaluate" and f.name == "pretrained_weights_dir":
        default = "the newest finished run"
    return text if default in ("", "False") else f"{text} (default {default})"


def add_images_flags(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds the flags of commands that compute descriptors of images."""
    parser.add_argument(
        "--images", required=required, nargs="+", help="read folders, patterns, lists (.txt, .csv) or image files"
    )
    parser.add_argument("--skip_bad", action="store_true", help="skip images that cannot be read, and list them")
    parser.add_argument("--no_flip", action="store_true", help="do not average with mirror images")


def add_gallery_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gallery", help="gallery file (.h5), milvus:URI#COLLECTION, or a collection of --store")
    parser.add_argument("--store", metavar="milvus:URI", help="Milvus: a file ending in .db, or http://HOST:PORT")


def check_counts(namespace: argparse.Namespace, *names: str) -> None:
    """Raises InputError for a value below 1."""
    for name in names:
        if (value := getattr(namespace, name)) < 1:
            raise InputError(f"--{name} {value} is too small; the minimum is 1")


def given_flags(namespace: argparse.Namespace) -> dict[str, Any]:
    """The given configuration flags as field values."""
    typed = {f.name: getattr(namespace, f.name) for f in fields(Config) if hasattr(namespace, f.name)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in typed.items()}


def to_flags(config: Config, base: Config) -> list[str]:
    """The command-line arguments of train that turn `base` into `config`."""
    argv: list[str] = []
    for f in fields(Config):
        value = getattr(config, f.name)
        if "train" in f.metadata["scripts"] and value != getattr(base, f.name):
            values = value if isinstance(value, tuple) else () if f.type is bool else (value,)
            argv += ["--" + f.name, *map(str, values)]
    return argv
