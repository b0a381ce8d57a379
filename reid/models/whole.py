"""Whole trained models of FastReID and torchreid that are models of this project under other names.

The files do not contain everything. Parts without weights, such as the pooling, and the size of the images are
taken from the default configuration that the other project has for the method.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reid.config import Config
from reid.models import build_model

FASTREID = {
    "backbone.": "base.",
    "heads.bottleneck.0.": "neck.",
    "heads.weight": "classifier.weight",
    "heads.classifier.weight": "classifier.weight",
    "heads.pool_layer.p": "pool.p",
}


@dataclass(frozen=True)
class Layout:
    """The names of a model in another project, and our configuration of it."""

    kind: str
    names: dict[str, str]  # beginnings of names: theirs -> ours; the first that fits counts
    config: dict[str, Any]


@dataclass(frozen=True)
class Whole:
    """A file that has a whole model. names: ours -> theirs."""

    kind: str
    names: dict[str, str]
    config: Config
    classes: int


LAYOUTS = (
    Layout(
        "BagTricks of FastReID, assumed to pool by the mean",
        FASTREID,
        {"model": "strong_baseline", "neck": "bnneck", "last_stride": 1, "unpadded_stem": True},
    ),
    Layout(
        "SBS of FastReID without non-local blocks, assumed to classify by cosines",
        FASTREID,
        {"model": "sbs", "h": 384, "unpadded_stem": True},
    ),
    Layout(
        "a ResNet of torchreid",
        {"classifier.": "classifier.", "": "base."},
        {"model": "strong_baseline", "neck": "none", "last_stride": 2},
    ),
)
# FastReID's normalisation of images, which must be ours; a counter that its published files have twice
WITHOUT_PLACE = ("pixel_mean", "pixel_std", "heads.bnneck.num_batches_tracked")
NORMALISATION = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}

# beginnings of names, as regular expressions, of parts that our models do not have
OTHERS = {
    r"b1_head\.": "FastReID's MGN pools and reduces otherwise than mgn",
    r"backbone\.NL_\d": "it has non-local blocks of FastReID",
    r"(backbone\.)?conv2\.0\.conv2(a|\.0)\.": "it is an OSNet, which is not a backbone of this project",
    r"conv5\.layers\.": "torchreid's PCB reduces all stripes with the same weights",
    r"fc\.1\.running_mean": "torchreid's embedding ends with a ReLU",
    r"(backbone\.)?layer1\.0\.se\.": "it has squeeze-and-excitation blocks",
}


def other_parts(state: dict[str, Tensor]) -> list[str]:
    """Why a known model of another project is not one of ours."""
    found = [words for name, words in OTHERS.items() if any(re.match(name, key) for key in state)]
    return found + other_normalisation(state)


def other_normalisation(state: dict[str, Tensor]) -> list[str]:
    found = []
    for name, ours in NORMALISATION.items():
        if name in state and not torch.allclose(state[name].float().flatten(), torch.tensor(ours), atol=1e-3):
            found.append(f"it normalises images with another {name}")
    return found


def find_whole(state: dict[str, Tensor], backbone: str, h: int | None, w: int) -> Whole | None:
    """The model in a file with this backbone; None unless exactly all tensors have a place.

    h, w: input size in pixels; h None: that of the other project's configuration.
    """
    for layout in LAYOUTS:
        names = {ours(name, layout): name for name in state if name not in WITHOUT_PLACE}
        weight = state.get(names.get("classifier.weight", ""))
        classes = 0 if weight is None else len(weight)
        size = {"h": h or layout.config.get("h", 256), "w": w}
        fields = {**layout.config, **size, "backbone": backbone, "stripes": (), "pretrained": "none"}
        config = Config(**fields)
        with torch.device("meta"):
            own = build_model(config, classes).state_dict()
        needed = {k for k in own if not k.endswith("num_batches_tracked")}
        fits = all(k in own and own[k].shape == state[name].shape for k, name in names.items())
        if fits and needed <= names.keys() and (classes or "neck.weight" in own) and not other_normalisation(state):
            kind = f"{layout.kind}: {config.model} on {backbone}, {classes} classes, {config.h}x{w}"
            return Whole(kind, names, config, classes)
    return None


def ours(name: str, layout: Layout) -> str:
    """Our name of a tensor; its own if the layout does not have it."""
    for theirs, own in layout.names.items():
        if name.startswith(theirs):
            return own + name.removeprefix(theirs)
    return name
