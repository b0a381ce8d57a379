"""RRID: Park and Ham, Relation Network for Person Re-identification, AAAI 2020 (arXiv 1911.09318).

For each n of `stripes` the map is cut into n horizontal stripes. In the paper's letters:

    (1) p_i = maximum over stripe i               part
    (2) r_i = mean of the other n - 1 parts       rest
    (3) a_i = E_p(p_i), b_i = E_r(r_i)            reduced to D channels
    (4) q_i = a_i + R([a_i; b_i])                 one-vs-rest relation
    (5) p_0 = maximum over the map                whole
    (6) c = (p_1 + ... + p_n - p_0) / (n - 1)     contrast
    (7) q_0 = a_0 + R([E_p(p_0); E_r(c)])         global contrastive pooling (GCP)

The numbers are those of this list. (7) is (4) for a single part, so parts and wholes go through
the same three batched layers. Slots share no weights.

Shapes: N images, C map channels, h x w map, n stripes, S slots (all parts, then all wholes),
T slots with a relation, D feature width, L classifiers, K identities.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from reid.models.backbone import build_backbone
from reid.models.layers import Classifiers, Output, SlotLayer, check_height, classify
from reid.models.pooling import band_maxima
from reid.variants import PUBLISHED, Variant, check_model


class RRID(nn.Module):
    """Images (N, 3, H, W) -> features (N, S, D) in eval mode, Output in training mode.

    num_classes 0: no classifiers. Raises InputError for unknown arguments, and for images whose
    map height (H / 16) is not divisible by every stripe count.
    """

    def __init__(
        self,
        num_classes: int,
        stripes: Sequence[int] = (6, 4, 2),
        backbone: str = "resnet50",
        variant: Variant = PUBLISHED,
        dim: int = 256,
    ):
        super().__init__()
        check_model("rrid", stripes, **asdict(variant))
        self.stripes, self.variant = tuple(stripes), variant
        parts = sum(stripes)
        wholes = 0 if variant.pooling == "none" else len(stripes)
        self.slots = parts + wholes
        self.bands = [(i / n, (i + 1) / n) for n in stripes for i in range(n)]  # of the image's height
        self.bands += [(0.0, 1.0)] * wholes
        first = 0 if variant.relation == "one_vs_rest" else parts
        end = self.slots if variant.pooling == "gcp" else parts
        self.related = slice(first, end)  # slots with a relation

        self.base = build_backbone(backbone)
        self.E_p = SlotLayer(self.slots, self.base.channels, dim)
        if related := end - first:
            self.E_r = SlotLayer(related, self.base.channels, dim)
            self.R = SlotLayer(related, 2 * dim, dim)
        heads = self.slots + 2 * related if variant.ce_on == "all" else self.slots
        self.classifiers = Classifiers(heads, dim, num_classes) if num_classes else None

    def forward(self, images: Tensor) -> Tensor | Output:
        x = self.base(images)  # (N, C, h, w), h = H / 16
        # the heads are 0.4 % of the work and need float32
        with torch.autocast(images.device.type, enabled=False):
            q, a, b = self.heads(x)  # (N, S, D), (N, T, D), (N, T, D)
            return Output(q, self.classify(q, a, b)) if self.training else q

    def logits(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> logits (N, L, K), in either mode."""
        return self.classify(*self.heads(self.base(images)))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (N, C, h, w) -> q (N, S, D), a and b (N, T, D)."""
        p, r = self.pool(x)  # (N, S, C), (N, T, C)
        q = self.E_p(p)  # (N, S, D): final where a slot has no relation
        a = q[:, self.related]  # (N, T, D)
        if not r.shape[1]:
            return q, a, a
        b = self.E_r(r)  # (N, T, D)                                  (3)
        related = a + self.R(torch.cat([a, b], 2))  # (N, T, D)       (4) (7)
        before, after = q[:, : self.related.start], q[:, self.related.stop :]
        return torch.cat([before, related, after], 1), a, b

    def pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, C, h, w) -> parts and wholes (N, S, C), rests and contrasts (N, T, C)."""
        check_height(16 * x.shape[2], self.stripes)
        # every stripe is a union of the finest common bands, so the map is read once
        finest = band_maxima(x, math.lcm(*self.stripes)).to(self.E_p.weight.dtype)
        maximum = finest.amax(1)  # (N, C)                            (5)
        average = self.variant.pooling == "avg"
        p_0 = x.mean((2, 3), dtype=finest.dtype) if average else maximum
        parts, rests, contrasts = [], [], []
        for n in self.stripes:
            p = finest.unflatten(1, (n, -1)).amax(2)  # (N, n, C)     (1)
            total = p.sum(1, keepdim=True)  # (N, 1, C)
            c = (total - maximum[:, None]) / (n - 1)  # (N, 1, C)     (6)
            if self.variant.contrast == "mean_minus_max":  # the formula in the paper's text
                c = total / n - maximum[:, None]
            parts.append(p)
            rests.append((total - p) / (n - 1))  # (N, n, C)          (2)
            contrasts.append(c)
        wholes = [p_0[:, None]] * (self.slots - sum(self.stripes))
        return torch.cat(parts + wholes, 1), torch.cat(rests + contrasts, 1)[:, self.related]

    def classify(self, q: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """q (N, S, D), a and b (N, T, D) -> logits (N, L, K)."""
        features = torch.cat([q, a, b], 1) if self.variant.ce_on == "all" else q
        return classify(self.classifiers, features)
