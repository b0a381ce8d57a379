"""The configuration: one frozen dataclass = command line = JSON in the run folder.

Fields are grouped by room. Rooms `data`, `model`, `training` and `evaluation` change numbers; what stands
in room `run` does not, so it takes no part in run names and may differ at resume.
"""

import argparse
import difflib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from reid.errors import InputError

BACKBONES = ("resnet50", "resnet18", "resnet34", "resnet101", "mobilenet_v2")
BOTH = ("train", "evaluate")


def option(default, room: str, help: str, choices=None, scripts=("train",), minimum=None) -> Any:
    """A configuration field; `scripts` are the command lines that have it as a flag."""
    metadata = {"room": room, "help": help, "choices": choices, "scripts": scripts, "minimum": minimum}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Every setting of a run. The defaults are the profile `paper`."""

    profile: str = option("paper", "run", "named defaults; other flags change them", ("paper", "demo"))

    dataset_type: tuple[str, ...] = option(
        ("market1501",),
        "data",
        "folders under --dataset_path; several are trained together, scored one by one",
        None,
        BOTH,
    )
    dataset_path: str = option("./datasets", "run", "folder of the datasets", scripts=BOTH)
    split: int = option(0, "data", "entry of splits.json", scripts=BOTH, minimum=0)
    train_set: str = option("trainval", "data", "train holds --num_val identities out", ("trainval", "train"))
    num_val: int = option(100, "data", "identities held out for validation by --train_set train", minimum=1)
    h: int = option(384, "data", "image height in pixels", scripts=BOTH, minimum=16)
    w: int = option(128, "data", "image width in pixels", scripts=BOTH, minimum=16)
    batch_size: int = option(64, "data", "images in a batch", scripts=BOTH, minimum=1)
    batch_sample: int = option(4, "data", "images of one identity in a batch (K)", minimum=1)
    sampler: str = option("pk", "data", "pk: P identities x K images; anchor: the published one", ("pk", "anchor"))
    erasing: str = option(
        "in_place", "data", "where the erased patch goes; published: at its own size", ("in_place", "published")
    )
    erasing_probability: float = option(0.5, "data", "share of images erased (published: (1 + p) / 2)", minimum=0)
    num_workers: int = option(4, "run", "decoding threads", scripts=BOTH, minimum=0)
    cache: str = option("auto", "run", "where decoded training images are kept", ("auto", "none", "ram", "gpu"))

    backbone: str = option("resnet50", "model", "torchvision network before the heads", BACKBONES)
    pretrained: str = option("auto", "model", "auto: pretrained/, then download; none; or a weights file")
    stripes: tuple[int, ...] = option((6, 4, 2), "model", "stripe counts, each >= 2", minimum=2)
    relation: str = option("one_vs_rest", "model", "relation of a part to the others", ("one_vs_rest", "none"))
    pooling: str = option("gcp", "model", "the whole-body feature", ("gcp", "max", "avg", "none"))
    contrast: str = option(
        "mean_of_rest", "model", "what GCP contrasts the maximum with", ("mean_of_rest", "mean_minus_max")
    )
    ce_on: str = option("all", "model", "features with classifiers: q, a and b, or only q", ("all", "final"))

    epochs: int = option(80, "training", "passes; an epoch has 4 x images / batch_size steps", minimum=1)
    max_steps: int = option(0, "training", "stop after N steps, drops at the same fractions (0: by epochs)", minimum=0)
    warmup_steps: int = option(0, "training", "steps of linear warm-up", minimum=0)
    lr: float = option(1e-2, "training", "learning rate of the heads", minimum=0)
    base_lr: float = option(1e-3, "training", "learning rate of the backbone", minimum=0)
    decay_schedule: tuple[int, ...] = option((40, 60), "training", "epochs at whose start the rate drops", minimum=1)
    staircase_decay_multiply_factor: float = option(0.1, "training", "factor of a drop", minimum=0)
    momentum: float = option(0.9, "training", "SGD momentum", minimum=0)
    weight_decay: float = option(5e-4, "training", "L2 penalty on every parameter", minimum=0)
    schedule: str = option("staircase", "training", "of the learning rate", ("staircase", "cosine"))
    margin: float = option(1.2, "training", "triplet margin", minimum=0)
    precision: str = option(
        "auto", "training", "of the backbone; auto: bf16 on CUDA, fp32 on CPU", ("auto", "fp32", "tf32", "bf16"), BOTH
    )
    ghost_batch: int = option(0, "training", "images that share batch-norm statistics (0: the whole batch)", minimum=0)
    compile: bool = option(False, "training", "torch.compile the backbone")
    seed: int = option(0, "training", "of weights, batches and augmentation", minimum=0)
    eval_every: int = option(5, "training", "epochs between validations (--train_set train)", minimum=1)

    ap: str = option("step", "evaluation", "average precision", ("step", "trapezoid"), ("evaluate",))
    cmc: str = option("market1501", "evaluation", "CMC", ("market1501", "allshots", "cuhk03"), ("evaluate",))
    metric: str = option("euclidean", "evaluation", "distance", ("euclidean", "cosine"), ("evaluate",))
    rerank: bool = option(False, "evaluation", "k-reciprocal re-ranking", scripts=("evaluate",))
    query_expansion: int = option(
        0, "evaluation", "queries become the mean with their N nearest gallery images", scripts=("evaluate",), minimum=0
    )
    no_cameras: bool = option(False, "evaluation", "nothing is junk", scripts=("evaluate",))
    camera_pairs: bool = option(False, "evaluation", "a table of camera against camera", scripts=("evaluate",))
    fpr: float = option(
        1e-3, "evaluation", "rate of false accepts for the recommended threshold", scripts=("evaluate",), minimum=0
    )

    gpus: tuple[int, ...] = option((0,), "run", "CUDA devices; without CUDA the CPU", scripts=BOTH, minimum=0)
    exp_dir: str = option("./logs", "run", "runs go to exp_dir/dataset/name", scripts=BOTH)
    name: str = option("", "run", "run name (default: the fields that differ from the profile)")
    resume: str = option("", "run", "continue the newest unfinished run of this name, or the given folder")
    allow_changes: bool = option(False, "run", "resume although the configuration differs")
    steps_per_log: int = option(100, "run", "steps between lines in metrics.jsonl and TensorBoard", minimum=1)
    print_freq: int = option(10, "run", "steps between refreshes of the progress line", minimum=1)
    pretrained_weights_dir: str = option(
        "", "run", "weights file (default: the newest finished run)", scripts=("evaluate",)
    )
    features: str = option(
        "", "run", "score a features file (.h5, .npz, layumi's .mat) instead of weights", scripts=("evaluate",)
    )
    report: bool = option(
        False, "run", "write report.html, a page to look at, beside the result", scripts=("evaluate",)
    )
    debug: bool = option(False, "run", "show tracebacks of input errors", scripts=BOTH)

    def __post_init__(self):
        for f in fields(self):
            check_value(f, getattr(self, f.name))
        if self.batch_size % self.batch_sample and self.sampler == "pk":
            raise InputError(
                f"--batch_size {self.batch_size} is not a multiple of --batch_sample {self.batch_sample}; "
                f"use --batch_size {-(-self.batch_size // self.batch_sample) * self.batch_sample}"
            )
        if self.name and (self.name.startswith(".") or any(c in self.name for c in "/\\\0*?[]")):
            raise InputError(f"--name {self.name!r} is no folder name; use letters, digits, '-' and '_'")
        if len(set(self.dataset_type)) < len(self.dataset_type):
            raise InputError(f"--dataset_type {' '.join(self.dataset_type)} names a dataset twice")
        if self.batch_size < self.batch_sample:
            raise InputError(f"--batch_size {self.batch_size} is less than --batch_sample {self.batch_sample}")
        if self.erasing_probability > 1:
            raise InputError(f"--erasing_probability {self.erasing_probability} is more than 1")
        if self.ghost_batch and self.batch_size % self.ghost_batch:
            raise InputError(f"--ghost_batch {self.ghost_batch} does not divide --batch_size {self.batch_size}")
        if not self.stripes:
            raise InputError("--stripes needs at least one stripe count, for example --stripes 6 4 2")
        if len(set(self.stripes)) < len(self.stripes):
            raise InputError(f"--stripes {' '.join(map(str, self.stripes))} names a stripe count twice")

    @property
    def datasets(self) -> str:
        """The datasets as a folder name: market1501+dukemtmc."""
        return "+".join(self.dataset_type)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """{room: {field: value}}, plain values only."""
        rooms: dict[str, dict[str, Any]] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            rooms.setdefault(f.metadata["room"], {})[f.name] = list(value) if isinstance(value, tuple) else value
        return rooms

    @classmethod
    def from_json(cls, rooms: dict[str, dict[str, Any]], source: str) -> "Config":
        """Inverse of to_json. Raises InputError naming `source` for fields or values it does not know."""
        if not isinstance(rooms, dict) or not all(isinstance(room, dict) for room in rooms.values()):
            raise InputError(f"{source}: expected a configuration, an object of rooms with their fields")
        known = {f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for room in rooms.values():
            for name, value in room.items():
                if name not in known:
                    raise InputError(f"{source}: unknown configuration field {name!r}; made by another version?")
                values[name] = tuple(value) if isinstance(value, list) else value
        try:
            return cls(**values)
        except InputError as e:
            raise InputError(f"{source}: {e}") from e

    def for_evaluation(self) -> "Config":
        """This training's data and model settings, with the defaults in all that only concerned the training."""
        defaults = {
            f.name: f.default
            for f in fields(self)
            if f.metadata["room"] == "run" or f.name in ("precision", "batch_size")
        }
        return replace(self, **defaults, batch_sample=1)  # K is the training's

    def changes(self, other: "Config") -> dict[str, Any]:
        """Fields that change numbers and differ from `other`, with this configuration's values."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.metadata["room"] != "run" and getattr(self, f.name) != getattr(other, f.name)
        }


PROFILES: dict[str, dict[str, Any]] = {
    "paper": {},
    "demo": {
        "profile": "demo",
        "dataset_type": ("demo",),
        "h": 192,
        "w": 64,
        "backbone": "mobilenet_v2",
        "pretrained": "none",
        "num_val": 12,
        "lr": 0.02,
        "base_lr": 0.02,
        "max_steps": 200,
        "warmup_steps": 20,
    },
}


def profile(name: str) -> Config:
    """The configuration of a named profile."""
    return Config(**PROFILES[name])


def check_value(f, value) -> None:
    """Type, choices and range of one field; errors name the flag as a user types it."""
    flag, choices, minimum = "--" + f.name, f.metadata["choices"], f.metadata["minimum"]
    items = value if isinstance(value, tuple) and isinstance(f.default, tuple) else (value,)
    expected = type(f.default[0]) if isinstance(f.default, tuple) else f.type
    if f.type is float:
        expected = (float, int)
    for item in items:
        if not isinstance(item, expected) or (isinstance(item, bool) and f.type is not bool):
            raise InputError(f"{flag} {item!r} has the wrong type; expected {getattr(f.type, '__name__', f.type)}")
        if choices and item not in choices:
            raise InputError(f"{flag} {item} is unknown; choose from {', '.join(choices)}{closest(item, choices)}")
        if expected in (float, (float, int)) and not math.isfinite(item):
            raise InputError(f"{flag} {item} is not a finite number")
        if minimum is not None and not item >= minimum:
            raise InputError(f"{flag} {item} is too small; the least is {minimum}")


def closest(word: str, known: Sequence[str]) -> str:
    """' (did you mean ...?)' or nothing."""
    near = difflib.get_close_matches(str(word), known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


class Parser(argparse.ArgumentParser):
    """argparse that leaves out what was not typed, and says what an unknown flag may have meant."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **kwargs)

    def parse_args(self, args=None, namespace=None):
        namespace, rest = self.parse_known_args(args, namespace)
        if rest:
            flags = [s for action in self._actions for s in action.option_strings]
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
        text = f.metadata["help"] + (f"; one of {', '.join(choices)}" if choices else "")
        text += "" if default in ("", False) else f" (default {default})"
        names = ["--" + f.name] + (["--weights"] if f.name == "pretrained_weights_dir" else [])
        if f.type is bool:
            room.add_argument(*names, action="store_true", help=text)
        elif f.name == "resume":
            room.add_argument(*names, nargs="?", const="newest", metavar="RUN", help=text)
        else:
            kind: Callable = type(f.default[0]) if many else type(f.default)
            metavar = kind.__name__.upper()
            room.add_argument(*names, type=kind, nargs="+" if many else None, metavar=metavar, help=text)
        if f.name == "train_set":
            for flag, value in (("--combine_trainval", "trainval"), ("--no-combine_trainval", "train")):
                text = f"the same as --train_set {value}"
                room.add_argument(flag, dest="train_set", action="store_const", const=value, help=text)


def given_flags(namespace: argparse.Namespace) -> dict[str, Any]:
    """What was typed, as configuration values."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in vars(namespace).items()}


def from_flags(given: dict[str, Any], base: Config | None = None) -> Config:
    """`base` (default: the named profile) with the typed flags on top. Raises InputError."""
    if base is None:
        name = given.get("profile", "paper")
        if name not in PROFILES:
            raise InputError(
                f"--profile {name} is unknown; choose from {', '.join(PROFILES)}{closest(name, [*PROFILES])}"
            )
        base = profile(name)
    return replace(base, **given)


def run_name(config: Config) -> str:
    """Fields that differ from the profile, as 'stripes-6_relation-none'; the profile's name when none do."""
    if config.name:
        return config.name
    changed = config.changes(profile(config.profile))
    changed.pop("dataset_type", None)  # the folder above the run already says it
    if "pretrained" in changed:
        changed["pretrained"] = Path(changed["pretrained"]).stem
    words = {k: "-".join(map(str, v)) if isinstance(v, tuple) else v for k, v in changed.items()}
    return "_".join(f"{k}-{v}" for k, v in words.items()) or config.profile


def save_json(config: Config, path: Path) -> None:
    path.write_text(json.dumps(config.to_json(), indent=2) + "\n")
