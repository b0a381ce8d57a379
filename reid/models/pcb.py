"""PCB: Sun et al., Beyond Part Models, ECCV 2018 (arXiv 1711.09349).

The average of each stripe is reduced and classified separately. The test uses the stripes
before the reduction (the paper's G).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.models.backbone import build_backbone
from reid.models.layers import Classifiers, Output, check_height, classify
from reid.variants import check_model


class PCB(nn.Module):
    """Images (N, 3, H, W) -> features (N, P, C) in eval mode, Output in training mode.

    P stripes. H / 16 must be divisible by P, else InputError.
    """

    def __init__(self, num_classes: int, stripes: int = 6, backbone: str = "resnet50", dim: int = 256):
        super().__init__()
        check_model("pcb", [stripes])
        self.stripes = stripes
        self.bands = tuple((i / stripes, (i + 1) / stripes) for i in range(stripes))
        self.base = build_backbone(backbone)
        self.dropout = nn.Dropout(0.5)
        self.reduce = nn.ModuleList()
        for _ in range(stripes):
            linear = nn.Linear(self.base.channels, dim)
            self.reduce.append(nn.Sequential(linear, nn.BatchNorm1d(dim)))
        self.classifiers = Classifiers(stripes, dim, num_classes) if num_classes else None

    def forward(self, images: Tensor) -> Tensor | Output:
        x = self.base(images)  # (N, C, h, w)
        check_height(16 * x.shape[2], [self.stripes])
        with torch.autocast(images.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            g = F.adaptive_avg_pool2d(x, (self.stripes, 1))  # (N, C, P, 1)
            g = g.squeeze(3).transpose(1, 2)  # (N, P, C)
            if not self.training:
                return g
            parts = self.dropout(g).unbind(1)  # P of (N, C)
            reduced = [reduce(part) for reduce, part in zip(self.reduce, parts)]
            h = torch.stack(reduced, 1)  # (N, P, 256)
            return Output(h, classify(self.classifiers, h))
