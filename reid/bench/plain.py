"""RRID as its equations are usually typed in: a module a part, a loop a loss. The slow form to compare with."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.models.backbone import build_backbone


def unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Related(nn.Module):
    """One slot: a = E(p), b = E'(r), q = a + R([a; b]), each with a classifier."""

    def __init__(self, channels: int, dim: int, classes: int):
        super().__init__()
        self.a, self.b, self.relation = unit(channels, dim), unit(channels, dim), unit(2 * dim, dim)
        self.fc = nn.ModuleList(nn.Linear(dim, classes) for _ in range(3))

    def forward(self, p: Tensor, r: Tensor) -> tuple[Tensor, list[Tensor]]:
        a, b = self.a(p), self.b(r)
        q = a + self.relation(torch.cat([a, b], 1))
        return q.flatten(1), [fc(x.flatten(1)) for fc, x in zip(self.fc, (q, a, b))]


class PlainHeads(nn.Module):
    """Map (N, C, h, w) -> features, a list of S (N, D), and logits, a list of 3S (N, K)."""

    def __init__(self, channels: int, classes: int, stripes=(6, 4, 2), dim: int = 256):
        super().__init__()
        self.stripes = stripes
        self.slots = nn.ModuleList(Related(channels, dim, classes) for n in stripes for _ in range(n + 1))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        features, logits = [], []
        slots = iter(self.slots)
        for n in self.stripes:
            height = x.shape[2] // n
            parts = [F.max_pool2d(x[:, :, i * height : (i + 1) * height], (height, x.shape[3])) for i in range(n)]
            p_max = F.max_pool2d(x, x.shape[2:])
            pairs = [(parts[i], sum(parts[j] for j in range(n) if j != i) / (n - 1)) for i in range(n)]
            for p, r in [*pairs, (p_max, (sum(parts) - p_max) / (n - 1))]:
                q, three = next(slots)(p, r)
                features.append(q)
                logits += three
        return features, logits


class PlainRRID(nn.Module):
    def __init__(self, classes: int, backbone: str):
        super().__init__()
        self.base = build_backbone(backbone)
        self.heads = PlainHeads(self.base.channels, classes)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return self.heads(self.base(images))


def plain_loss(features: list[Tensor], logits: list[Tensor], labels: Tensor, margin: float) -> Tensor:
    loss = sum(2 * F.cross_entropy(x, labels) for x in logits)
    same = labels[:, None] == labels
    for f in features:
        distance = torch.cdist(f[None], f[None])[0].clamp(min=1e-6)
        hardest = [(distance[i][same[i]].max(), distance[i][~same[i]].min()) for i in range(len(f))]
        loss = loss + torch.stack([F.relu(margin + positive - negative) for positive, negative in hardest]).mean()
    return loss
