"""MGN: Wang et al., Learning Discriminative Features with Multiple Granularities, ACM MM 2018 (arXiv 1804.01438).

The network is shared up to the first block of its third stage; from there a branch for the whole and one for each
granularity go on by themselves. Every branch gives its whole, the others their stripes too; each is reduced to 256
and classified. The triplet loss sees the wholes.
"""

import torch
from torch import Tensor, nn

from reid.models.backbone import build_backbone
from reid.models.layers import Classifiers, Output, SlotLayer, check_height
from reid.models.pooling import band_maxima


class Branches(nn.Module):
    """Images (N, 3, H, W) -> a map of each branch: the first at stride 32, the others at stride 16."""

    def __init__(self, name: str, count: int):
        super().__init__()
        whole = build_backbone(name, last_stride=2)
        self.channels = whole.channels
        self.trunk, first = whole.cut()
        self.branches = nn.ModuleList([first, *(build_backbone(name).cut()[1] for _ in range(count - 1))])

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.trunk(images)
        return [branch(x) for branch in self.branches]


class MGN(nn.Module):
    """Images (N, 3, H, W) -> features (N, S, 256) in eval mode, Output in training mode: branch after branch, its
    whole first. Stripes (2, 3): S = 8. H/16 must be divisible by every stripe count (InputError otherwise)."""

    def __init__(self, num_classes: int, stripes: tuple[int, ...] = (2, 3), backbone: str = "resnet50", dim: int = 256):
        super().__init__()
        self.stripes = stripes
        self.base = Branches(backbone, 1 + len(stripes))
        self.bands: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
        self.wholes = [0]  # their slots
        for n in stripes:
            self.wholes.append(len(self.bands))
            self.bands += ((0.0, 1.0), *((i / n, (i + 1) / n) for i in range(n)))
        self.reduce = SlotLayer(len(self.bands), self.base.channels, dim)
        self.classifiers = Classifiers(len(self.bands), dim, num_classes) if num_classes else None

    def forward(self, images: Tensor) -> Tensor | Output:
        first, *others = self.base(images)
        check_height(16 * others[0].shape[2], self.stripes)
        slots = [first.amax((2, 3))[:, None]]
        for x, n in zip(others, self.stripes):
            p = band_maxima(x, n)  # (N, n, C)
            slots += [p.amax(1, keepdim=True), p]
        with torch.autocast(images.device.type, enabled=False):
            f = self.reduce(torch.cat(slots, 1).to(self.reduce.weight.dtype))  # (N, S, 256)
            return Output(f[:, self.wholes], self.classifiers(f)) if self.training else f
