"""Losses on all slots at once. N images, S slots, D width, L classifiers, K identities."""

import torch
from torch import Tensor
from torch.nn import functional as F


def batch_hard_triplet(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Features (N, S, D), labels (N,) -> (S,): the mean over anchors of max(0, margin + hardest positive -
    hardest negative), Euclidean distances of un-normalised features. Hermans et al. 2017 (arXiv 1703.07737).
    """
    f = features.transpose(0, 1)  # (S, N, D)
    square = f.square().sum(2)
    distance2 = torch.baddbmm(square[:, :, None] + square[:, None, :], f, f.mT, alpha=-2)
    distance = distance2.clamp(min=1e-12).sqrt()  # (S, N, N); the root of zero has no gradient
    same = labels[:, None] == labels
    positive = distance.masked_fill(~same, 0).amax(2)
    negative = distance.masked_fill(same, torch.inf).amin(2)
    return F.relu(margin + positive - negative).mean(1)


def identity_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (N, L, K), labels (N,) -> (L,): the cross entropy of each classifier, mean over the batch."""
    target = labels[:, None].expand(-1, logits.shape[1])
    return F.cross_entropy(logits.transpose(1, 2), target, reduction="none").mean(0)


def objective(triplet: Tensor, cross_entropy: Tensor) -> Tensor:
    """The paper's loss from the sum of the triplets over slots and the sum of the cross entropies over classifiers."""
    return triplet + 2 * cross_entropy
