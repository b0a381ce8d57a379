"""Layers that the models share, and the check of image heights.

Shapes: N images, S slots, D feature width, L classifiers, K identities.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.errors import InputError

COSINE_SCALE = 64.0  # of the logits of a model that classifies by cosines


class Output(NamedTuple):
    """What a model returns in training mode."""

    features: Tensor  # (N, S, D)
    logits: Tensor  # (N, L, K); RRID: on q of every slot, then on a, then on b of the related slots


class SlotLayer(nn.Module):
    """1x1 convolution + batch norm + ReLU, separate weights for each slot: (N, S, in) -> (N, S, out)."""

    def __init__(self, slots: int, inputs: int, outputs: int):
        super().__init__()
        scale = math.sqrt(2 / inputs)  # He et al. 2015
        self.weight = nn.Parameter(torch.randn(slots, outputs, inputs) * scale)
        self.bias = nn.Parameter(torch.zeros(slots, outputs))
        self.norm: nn.Module = nn.BatchNorm1d(slots * outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = slotwise_linear(x, self.weight, self.bias)  # (N, S, out)
        return F.relu(self.norm(y.flatten(1)).view(y.shape))


class Classifiers(nn.Module):
    """L linear classifiers with bias, one per feature: (N, L, D) -> (N, L, K)."""

    def __init__(self, count: int, inputs: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, classes, inputs) * 1e-3)
        self.bias = nn.Parameter(torch.zeros(count, classes))

    def forward(self, x: Tensor) -> Tensor:
        return slotwise_linear(x, self.weight, self.bias)


def named(*modules: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def classify(classifiers: nn.Module | None, x: Tensor) -> Tensor:
    """Logits of features. Raises InputError for a model without classifiers."""
    if classifiers is None:
        raise InputError("this model has no classifiers; training needs num_classes of at least 1")
    return classifiers(x)


def slotwise_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (N, S, in), weight (S, out, in), bias (S, out) -> (N, S, out)."""
    y = torch.baddbmm(bias[:, None], x.transpose(0, 1), weight.mT)  # (S, N, out)
    return y.transpose(0, 1)


def check_height(height: int, stripes: Sequence[int]) -> None:
    """Raises InputError if the map of images of this height cannot be cut into the stripes."""
    rows, step = -(-height // 16), math.lcm(*stripes)
    if rows % step:
        below = rows // step * step
        above = below + step
        good = " or ".join(f"--h {16 * r}" for r in (below, above, above + step) if r)
        bad = next(n for n in stripes if rows % n)
        raise InputError(f"map height {rows} (image height {height}) cannot be cut into {bad} stripes; use {good}")
