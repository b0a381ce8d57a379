"""Layers and rules that the models share. N images, S slots, C channels, D width, L classifiers, K identities."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.errors import InputError


class Output(NamedTuple):
    """What the model returns in training mode."""

    features: Tensor  # (N, S, D)
    logits: Tensor  # (N, L, K): on q of every slot, then on a, then on b of the related slots


class SlotLayer(nn.Module):
    """An unshared 1x1 convolution + batch norm + ReLU for each of S slots: (N, S, in) -> (N, S, out)."""

    def __init__(self, slots: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(slots, outputs, inputs) * math.sqrt(2 / inputs))  # He et al. 2015
        self.bias = nn.Parameter(torch.zeros(slots, outputs))
        self.norm = nn.BatchNorm1d(slots * outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.baddbmm(self.bias[:, None], x.transpose(0, 1), self.weight.mT).transpose(0, 1)  # (N, S, out)
        return F.relu(self.norm(y.flatten(1)).view(y.shape))


class Classifiers(nn.Module):
    """L linear classifiers with bias, each on its own feature: (N, L, D) -> (N, L, K)."""

    def __init__(self, count: int, inputs: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, classes, inputs) * 1e-3)
        self.bias = nn.Parameter(torch.zeros(count, classes))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[:, None], x.transpose(0, 1), self.weight.mT).transpose(0, 1)


def check_height(height: int, stripes: Sequence[int]) -> None:
    """Raises InputError when the map of images `height` pixels high cannot be cut into the stripes."""
    rows, step = -(-height // 16), math.lcm(*stripes)
    if rows % step:
        below, above = rows // step * step * 16, (rows // step + 1) * step * 16
        good = " or ".join(f"--h {h}" for h in (below, above, above + step * 16) if h)
        bad = next(n for n in stripes if rows % n)
        raise InputError(f"map height {rows} (image height {height}) cannot be cut into {bad} stripes; use {good}")
