"""The strong baseline: Luo et al., Bag of Tricks and a Strong Baseline, CVPRW 2019 (arXiv 1903.07071), in PaddleClas'
three configurations. The triplet and center losses see the feature before the neck, the classifier and the test
see it behind.
"""

import torch
from torch import Tensor, nn

from reid.models.backbone import build_backbone
from reid.models.layers import Output


class StrongBaseline(nn.Module):
    """Images (N, 3, H, W) -> features (N, 1, C) in eval mode, Output in training mode.

    neck 'bnneck': batch norm whose bias stays 0, classifier without bias. 'none': a classifier on the pooled feature.
    """

    bands = ((0.0, 1.0),)

    def __init__(self, num_classes: int, backbone: str = "resnet50", last_stride: int = 1, neck: str = "bnneck"):
        super().__init__()
        self.base = build_backbone(backbone, last_stride)
        channels = self.base.channels
        self.neck = nn.BatchNorm1d(channels) if neck == "bnneck" else nn.Identity()
        self.classifier = nn.Linear(channels, num_classes, bias=neck == "none") if num_classes else None
        if neck == "bnneck":
            self.neck.bias.requires_grad_(False)
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=1e-3)

    def forward(self, images: Tensor) -> Tensor | Output:
        x = self.base(images)  # (N, C, h, w)
        with torch.autocast(images.device.type, enabled=False):
            pooled = x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))  # (N, C)
            f = self.neck(pooled)
            return Output(pooled[:, None], self.classifier(f)[:, None]) if self.training else f[:, None]
