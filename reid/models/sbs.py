"""SBS, the stronger baseline of FastReID: He et al. 2020 (arXiv 2006.02631).

GeM pooling and a neck. The triplet loss, the classifier and the test use the feature after the
neck. FastReID's non-local blocks and AutoAugment are left out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.models.backbone import build_backbone
from reid.models.layers import COSINE_SCALE, Output, classify


class GeM(nn.Module):
    """Generalised mean: map (N, C, h, w) -> (N, C), the mean of x^p to the power 1 / p.

    p is learned. 1 is the average, infinity the maximum. Radenovic et al. 2019 (arXiv 1711.02512).
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6):
        super().__init__()
        self.p, self.eps = nn.Parameter(torch.tensor([p])), eps

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1 / self.p)


class Cosines(nn.Linear):
    """Features (N, C) -> logits (N, K): COSINE_SCALE times their cosines to the K rows of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        return COSINE_SCALE * F.linear(F.normalize(x), F.normalize(self.weight))


class SBS(nn.Module):
    """Images (N, 3, H, W) -> features (N, 1, C) in eval mode, Output in training mode.

    The circle loss changes the logits with the labels (losses.circle_logits).
    """

    bands = ((0.0, 1.0),)

    def __init__(self, num_classes: int, backbone: str = "resnet50_ibn_a"):
        super().__init__()
        self.base = build_backbone(backbone)
        self.pool = GeM()
        self.neck = nn.BatchNorm1d(self.base.channels)
        self.neck.bias.requires_grad_(False)
        self.classifier = Cosines(self.base.channels, num_classes, bias=False) if num_classes else None
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor | Output:
        x = self.base(images)  # (N, C, h, w)
        with torch.autocast(images.device.type, enabled=False):
            f = self.neck(self.pool(x.to(self.pool.p.dtype)))  # (N, C)
            if not self.training:
                return f[:, None]
            return Output(f[:, None], classify(self.classifier, f)[:, None])
