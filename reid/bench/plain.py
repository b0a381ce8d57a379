"""RRID implemented directly from its equations: one module per part, one loop per loss.

The benchmarks compare with this slow implementation.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.models.backbone import build_backbone
from reid.models.published import BATCH_NORM
from reid.models.rrid import RRID


def unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Related(nn.Module):
    """One slot: a = E(p), b = E'(r), q = a + R([a; b]), each with a classifier."""

    def __init__(self, channels: int, dim: int, classes: int):
        super().__init__()
        self.a, self.b = unit(channels, dim), unit(channels, dim)
        self.relation = unit(2 * dim, dim)
        self.fc = nn.ModuleList(nn.Linear(dim, classes) for _ in range(3))

    def forward(self, p: Tensor, r: Tensor) -> tuple[Tensor, list[Tensor]]:
        a, b = self.a(p), self.b(r)
        q = a + self.relation(torch.cat([a, b], 1))
        return q.flatten(1), [fc(x.flatten(1)) for fc, x in zip(self.fc, (q, a, b))]


class PlainHeads(nn.Module):
    """Map (N, C, h, w) -> features, a list of S (N, D), and logits, a list of 3S (N, K)."""

    def __init__(self, channels: int, classes: int, stripes: Sequence[int] = (6, 4, 2), dim: int = 256):
        super().__init__()
        self.stripes = stripes
        slots = (Related(channels, dim, classes) for n in stripes for _ in range(n + 1))
        self.slots = nn.ModuleList(slots)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        features, logits = [], []
        slots = iter(self.slots)
        for n in self.stripes:
            height = x.shape[2] // n
            parts = []
            for i in range(n):
                stripe = x[:, :, i * height : (i + 1) * height]
                parts.append(F.max_pool2d(stripe, (height, x.shape[3])))
            p_max = F.max_pool2d(x, x.shape[2:])
            pairs = []
            for i in range(n):
                rest = sum(parts[j] for j in range(n) if j != i) / (n - 1)
                pairs.append((parts[i], rest))
            pairs.append((p_max, (sum(parts) - p_max) / (n - 1)))
            for p, r in pairs:
                q, three = next(slots)(p, r)
                features.append(q)
                logits += three
        return features, logits

    def copy_weights(self, model: RRID) -> None:
        """Copies the weights of the batched heads, which have all parts first, then all wholes."""
        order, start, parts = [], 0, sum(self.stripes)
        for whole, n in enumerate(self.stripes, parts):
            order += [*range(start, start + n), whole]
            start += n
        state = model.state_dict()
        for related, i in zip(cast("list[Related]", self.slots), order):
            copy_slot(related.a, state, "E_p", i)
            copy_slot(related.b, state, "E_r", i)
            copy_slot(related.relation, state, "R", i)
            for fc, head in zip(related.fc, range(i, 3 * model.slots, model.slots)):
                fc.load_state_dict({k: state[f"classifiers.{k}"][head] for k in ("weight", "bias")})


def copy_slot(plain: nn.Sequential, state: dict[str, Tensor], layer: str, slot: int) -> None:
    """Fills a unit with one slot of a SlotLayer."""
    weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
    plain[0].load_state_dict({"weight": weight[slot][:, :, None, None], "bias": bias[slot]})
    norm = {k: state[f"{layer}.norm.{k}"].view(bias.shape)[slot] for k in BATCH_NORM}
    plain[1].load_state_dict(norm, strict=False)


class PlainRRID(nn.Module):
    """The plain heads on a backbone, with the weights of an RRID model."""

    def __init__(self, model: RRID, backbone: str, classes: int):
        super().__init__()
        self.base = build_backbone(backbone)
        self.base.load_state_dict(model.base.state_dict())
        self.heads = PlainHeads(self.base.channels, classes, model.stripes)
        self.heads.copy_weights(model)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self.heads(self.base(images))


def plain_loss(features: list[Tensor], logits: list[Tensor], labels: Tensor, margin: float = 1.2) -> Tensor:
    loss = torch.zeros((), device=labels.device)
    for x in logits:
        loss = loss + 2 * F.cross_entropy(x, labels)
    same = labels[:, None] == labels
    for f in features:
        distance = torch.cdist(f[None], f[None])[0].clamp(min=1e-6)
        anchors = []
        for i, row in enumerate(distance):
            anchors.append(F.relu(margin + row[same[i]].max() - row[~same[i]].min()))
        loss = loss + torch.stack(anchors).mean()
    return loss
