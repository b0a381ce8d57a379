"""The strong baseline: Luo et al., Bag of Tricks and a Strong Baseline, CVPRW 2019 (arXiv 1903.07071).

Supports the three configurations of PaddleClas. The triplet and center losses use the feature
before the neck; the classifier and the test use the feature after it.
"""

import torch
from torch import Tensor, nn

from reid.models.backbone import build_backbone
from reid.models.layers import Output, classify
from reid.variants import check_model


class StrongBaseline(nn.Module):
    """Images (N, 3, H, W) -> features (N, 1, C) in eval mode, Output in training mode.

    neck "bnneck": a batch norm whose bias stays 0, then a classifier without bias.
    neck "none": a classifier with bias on the pooled feature.
    """

    bands = ((0.0, 1.0),)

    def __init__(self, num_classes: int, backbone: str = "resnet50", last_stride: int = 1, neck: str = "bnneck"):
        super().__init__()
        check_model("strong_baseline", neck=neck)
        self.base = build_backbone(backbone, last_stride)
        channels, has_neck = self.base.channels, neck == "bnneck"
        self.neck = nn.BatchNorm1d(channels) if has_neck else nn.Identity()
        self.classifier = nn.Linear(channels, num_classes, not has_neck) if num_classes else None
        if has_neck:
            self.neck.bias.requires_grad_(False)
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=1e-3)

    def forward(self, images: Tensor) -> Tensor | Output:
        x = self.base(images)  # (N, C, h, w)
        with torch.autocast(images.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            pooled = x.mean((2, 3), dtype=dtype)  # (N, C)
            f = self.neck(pooled)  # (N, C)
            if not self.training:
                return f[:, None]
            return Output(pooled[:, None], classify(self.classifier, f)[:, None])
