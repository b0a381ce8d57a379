"""Arguments of the models: their choices, and which models take them.

The configuration and the models both check their arguments here, so the command line and
Python code give the same messages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reid.errors import InputError

# the largest number of stripe counts that a model takes
STRIPE_COUNTS = {"rrid": 99, "baseline": 0, "strong_baseline": 0, "sbs": 0, "pcb": 1, "mgn": 99}
MODELS = tuple(STRIPE_COUNTS)

BACKBONES = (
    "resnet50",
    "resnet18",
    "resnet34",
    "resnet101",
    "resnet50_ibn_a",
    "resnet18_ibn_a",
    "resnet34_ibn_a",
    "resnet101_ibn_a",
    "mobilenet_v2",
    "efficientnet_v2_s",
)
TIMM = "timm:"  # begins the name of a backbone from timm

CHOICES: dict[str, tuple] = {  # the default first
    "backbone": BACKBONES,
    "relation": ("one_vs_rest", "none"),
    "pooling": ("gcp", "max", "avg", "none"),
    "contrast": ("mean_of_rest", "mean_minus_max"),
    "ce_on": ("all", "final"),
    "neck": ("none", "bnneck"),
    "last_stride": (1, 2),
}
OWNERS = {  # models that take an argument; all models take the other arguments
    "relation": ("rrid",),
    "pooling": ("rrid",),
    "contrast": ("rrid",),
    "ce_on": ("rrid",),
    "neck": ("strong_baseline",),
    "last_stride": ("baseline", "strong_baseline"),
}


@dataclass(frozen=True)
class Variant:
    """Parts of RRID that an ablation exchanges. The defaults are the published model."""

    relation: str = "one_vs_rest"  # of a part to the other parts
    pooling: str = "gcp"  # of the whole body
    contrast: str = "mean_of_rest"  # the vector that GCP relates the maximum to
    ce_on: str = "all"  # features with a classifier: q, a and b, or only q


PUBLISHED = Variant()


def from_timm(name: str, value: Any) -> bool:
    """Whether the value of the argument `name` is a backbone of timm, whose names only timm knows."""
    return name == "backbone" and isinstance(value, str) and value.startswith(TIMM) and value != TIMM


def check_choice(name: str, value: Any) -> None:
    """Raises InputError for an invalid value of the argument `name`."""
    if value not in CHOICES[name] and not from_timm(name, value):
        known = ", ".join(map(str, CHOICES[name]))
        raise InputError(f"--{name} {value} is unknown; choose from {known}")


def check_model(model: str, stripes: Sequence[int] = (), **arguments: Any) -> None:
    """Raises InputError for stripe counts or arguments that `model` does not take."""
    if model not in MODELS:
        raise InputError(f"--model {model} is unknown; choose from {', '.join(MODELS)}")
    most, counts = STRIPE_COUNTS[model], " ".join(map(str, stripes))
    if most and not stripes:
        raise InputError(f"--model {model} needs a stripe count, for example --stripes 6")
    if len(stripes) > most:
        raise InputError(f"--stripes {counts}: --model {model} takes {most or 'no'} stripe count(s)")
    if len(set(stripes)) < len(stripes):
        raise InputError(f"--stripes {counts} names a stripe count twice")
    if stripes and min(stripes) < 2:
        raise InputError(f"--stripes {counts}: the smallest stripe count is 2")
    for name, value in arguments.items():
        check_choice(name, value)
        owners = OWNERS.get(name, MODELS)
        if model not in owners and value != CHOICES[name][0]:
            raise InputError(f"--{name} belongs to --model {' or '.join(owners)}, not to {model}")
