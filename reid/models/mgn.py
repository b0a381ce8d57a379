"""MGN: Wang et al., Learning Discriminative Features with Multiple Granularities, ACM MM 2018
(arXiv 1804.01438).

All branches share the network up to the first block of its third stage. The first branch sees
the whole image; each further branch has one granularity. Every branch gives a global feature, the
further ones also a feature per stripe. Each feature is reduced to 256 and classified. The triplet
loss uses the global features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reid.models.backbone import build_backbone
from reid.models.layers import Classifiers, Output, SlotLayer, check_height, classify
from reid.models.pooling import band_maxima
from reid.variants import check_model


class Branches(nn.Module):
    """Images (N, 3, H, W) -> one map per branch: the first at stride 32, the others at stride 16."""

    def __init__(self, name: str, count: int):
        super().__init__()
        whole = build_backbone(name, last_stride=2)
        self.channels = whole.channels
        self.trunk, first = whole.cut()
        self.branches = nn.ModuleList([first])
        for _ in range(count - 1):
            self.branches.append(build_backbone(name).cut()[1])

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.trunk(images)
        return [branch(x) for branch in self.branches]


class MGN(nn.Module):
    """Images (N, 3, H, W) -> features (N, S, 256) in eval mode, Output in training mode.

    Slots are in the order of the branches, the global feature of a branch before its stripes. S is 8
    for stripes (2, 3). H / 16 must be divisible by every stripe count, else InputError.
    """

    def __init__(self, num_classes: int, stripes: Sequence[int] = (2, 3), backbone: str = "resnet50", dim: int = 256):
        super().__init__()
        check_model("mgn", stripes)
        self.stripes = tuple(stripes)
        self.base = Branches(backbone, 1 + len(stripes))
        self.bands: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
        self.wholes = [0]  # slots of the global features
        for n in stripes:
            self.wholes.append(len(self.bands))
            self.bands += ((0.0, 1.0), *((i / n, (i + 1) / n) for i in range(n)))
        slots = len(self.bands)
        self.reduce = SlotLayer(slots, self.base.channels, dim)
        self.classifiers = Classifiers(slots, dim, num_classes) if num_classes else None

    def forward(self, images: Tensor) -> Tensor | Output:
        first, *others = self.base(images)  # (N, C, h / 2, w / 2), then (N, C, h, w) each
        check_height(16 * others[0].shape[2], self.stripes)
        slots = [first.amax((2, 3))[:, None]]
        for x, n in zip(others, self.stripes):
            p = band_maxima(x, n)  # (N, n, C)
            slots += [p.amax(1, keepdim=True), p]
        with torch.autocast(images.device.type, enabled=False):
            pooled = torch.cat(slots, 1).to(self.reduce.weight.dtype)  # (N, S, C)
            f = self.reduce(pooled)  # (N, S, 256)
            return Output(f[:, self.wholes], classify(self.classifiers, f)) if self.training else f
