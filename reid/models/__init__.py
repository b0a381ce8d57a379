"""Models, built from a configuration."""

from typing import Any

from torch import nn

from reid.config import Config
from reid.models.baseline import Baseline
from reid.models.mgn import MGN
from reid.models.pcb import PCB
from reid.models.rrid import RRID
from reid.models.sbs import SBS
from reid.models.strong_baseline import StrongBaseline
from reid.variants import Variant


def build_model(config: Config, num_classes: int) -> nn.Module:
    """The untrained model of a configuration; num_classes 0: without classifiers.

    Images (N, 3, H, W) -> features (N, S, D) in eval mode, Output in training mode. `base` is
    its backbone, `bands` the part of the image's height that each slot sees.
    """
    c = config
    model: Any
    match c.model:
        case "baseline":
            model = Baseline(num_classes, c.backbone, c.last_stride)
        case "strong_baseline":
            model = StrongBaseline(num_classes, c.backbone, c.last_stride, c.neck)
        case "sbs":
            model = SBS(num_classes, c.backbone)
        case "pcb":
            model = PCB(num_classes, c.stripes[0], c.backbone)
        case "mgn":
            model = MGN(num_classes, c.stripes, c.backbone)
        case _:
            variant = Variant(c.relation, c.pooling, c.contrast, c.ce_on)
            model = RRID(num_classes, c.stripes, c.backbone, variant)
    if c.unpadded_stem:
        model.base.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    model.num_classes = num_classes
    return model
