"""RRID: Park and Ham, Relation Network for Person Re-identification, AAAI 2020 (arXiv 1911.09318).

One map is cut into stripes at several granularities; each part is related to the mean of the others (one-vs-rest
relation), each whole to what its maximum leaves over (global contrastive pooling, GCP). GCP is the same relation with
one part, so parts and wholes go through the same three batched layers. Letters are the paper's: p part, r rest,
c contrast, a = E(p), b = E(r), q = a + R([a; b]).

N images, C map channels, n stripes of a granularity, S slots (all parts, then all wholes), T slots with b, D feature
width, L classifiers, K identities.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reid.config import Config
from reid.errors import InputError
from reid.models.backbone import build_backbone
from reid.models.layers import Classifiers, Output, SlotLayer, check_height
from reid.models.pooling import band_maxima


class RRID(nn.Module):
    """Images (N, 3, H, W) -> features (N, S, D) in eval mode, Output in training mode. num_classes=0: no classifiers.
    H/16 must be divisible by every stripe count (InputError otherwise).
    contrast: mean_of_rest made the published numbers, mean_minus_max is the paper's text; the others: config.py.
    """

    def __init__(
        self,
        num_classes: int,
        stripes: Sequence[int] = (6, 4, 2),
        backbone: str = "resnet50",
        relation: str = "one_vs_rest",
        pooling: str = "gcp",
        contrast: str = "mean_of_rest",
        ce_on: str = "all",
        dim: int = 256,
    ):
        super().__init__()
        Config(stripes=tuple(stripes), relation=relation, pooling=pooling, contrast=contrast, ce_on=ce_on)  # checks
        self.stripes, self.pooling, self.contrast, self.ce_on = tuple(stripes), pooling, contrast, ce_on
        parts, wholes = sum(self.stripes), len(self.stripes) if pooling != "none" else 0
        self.slots = parts + wholes
        self.bands = [(i / n, (i + 1) / n) for n in self.stripes for i in range(n)] + wholes * [(0.0, 1.0)]  # of height
        self.related = slice(0 if relation == "one_vs_rest" else parts, self.slots if pooling == "gcp" else parts)
        related = len(range(self.slots)[self.related])

        self.base = build_backbone(backbone)
        self.E_p = SlotLayer(self.slots, self.base.channels, dim)  # on parts and maxima
        if related:
            self.E_r = SlotLayer(related, self.base.channels, dim)  # on rests and contrasts
            self.R = SlotLayer(related, 2 * dim, dim)
        heads = self.slots + 2 * related if ce_on == "all" else self.slots
        self.classifiers = Classifiers(heads, dim, num_classes) if num_classes else None

    def forward(self, images: Tensor) -> Tensor | Output:
        x = self.base(images)  # (N, C, H/16, W/16)
        with torch.autocast(images.device.type, enabled=False):  # heads are 0.4 % of the work and need the digits
            q, a, b = self.heads(x)
            return Output(q, self.classify(q, a, b)) if self.training else q

    def logits(self, images: Tensor) -> Tensor:
        """(N, L, K) in either mode."""
        return self.classify(*self.heads(self.base(images)))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (N, C, h, w) -> q (N, S, D), a and b (N, T, D) of the related slots."""
        p, r = self.pool(x)
        q = self.E_p(p)  # a of every slot; what has no relation ends here
        a = q[:, self.related]
        if not r.shape[1]:
            return q, a, a
        b = self.E_r(r)
        related = a + self.R(torch.cat([a, b], 2))
        return torch.cat([q[:, : self.related.start], related, q[:, self.related.stop :]], 1), a, b

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, C, h, w) -> p (N, S, C), r (N, T, C): parts and wholes, what each is related to."""
        check_height(16 * x.shape[2], self.stripes)
        # the maxima of the finest common bands: every stripe is some of them, so the map is read once
        m = band_maxima(x, math.lcm(*self.stripes)).to(self.E_p.weight.dtype)
        p_max = m.amax(1)  # (N, C)
        whole = x.mean((2, 3), dtype=m.dtype) if self.pooling == "avg" else p_max
        parts, rests, contrasts = [], [], []
        for n in self.stripes:
            p = m.unflatten(1, (n, -1)).amax(2)  # (N, n, C)
            total = p.sum(1, keepdim=True)
            parts.append(p)
            rests.append((total - p) / (n - 1))
            c = (total - p_max[:, None]) / (n - 1)  # the mean of what is not the maximum
            contrasts.append(c if self.contrast == "mean_of_rest" else total / n - p_max[:, None])
        wholes = [whole[:, None]] * (self.slots - sum(self.stripes))
        return torch.cat(parts + wholes, 1), torch.cat(rests + contrasts, 1)[:, self.related]

    def classify(self, q: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if self.classifiers is None:
            raise InputError("this model has no classifiers (num_classes=0): train needs one class an identity")
        return self.classifiers(torch.cat([q, a, b], 1) if self.ce_on == "all" else q)
