"""The classification baseline: average pooling, a 512-d embedding, one classifier.

Zheng, Yang, Hauptmann 2016 (arXiv 1610.02984), as in layumi's Person_reID_baseline_pytorch.
"""

import torch
from torch import Tensor, nn

from reid.models.backbone import build_backbone
from reid.models.layers import Classifiers, Output, classify


class Baseline(nn.Module):
    """Images (N, 3, H, W) -> features (N, 1, 512) in eval mode, Output in training mode."""

    bands = ((0.0, 1.0),)

    def __init__(self, num_classes: int, backbone: str = "resnet50", last_stride: int = 2, dim: int = 512):
        super().__init__()
        self.base = build_backbone(backbone, last_stride)
        self.embed = nn.Sequential(nn.Linear(self.base.channels, dim), nn.BatchNorm1d(dim))
        self.dropout = nn.Dropout(0.5)
        self.classifiers = Classifiers(1, dim, num_classes) if num_classes else None

    def forward(self, images: Tensor) -> Tensor | Output:
        x = self.base(images)  # (N, C, h, w)
        with torch.autocast(images.device.type, enabled=False):
            pooled = x.mean((2, 3), dtype=self.embed[0].weight.dtype)  # (N, C)
            f = self.embed(pooled)[:, None]  # (N, 1, 512)
            return Output(f, classify(self.classifiers, self.dropout(f))) if self.training else f
