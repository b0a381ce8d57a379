"""Losses on all slots at once.

Shapes: N images, S slots, D feature width, L classifiers, K identities.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def batch_hard_triplet(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Features (N, S, D), labels (N,) -> (S,): the batch-hard triplet loss of each slot.

    The mean over anchors of max(0, margin + hardest positive - hardest negative), with Euclidean
    distances of un-normalised features. Hermans et al. 2017 (arXiv 1703.07737).
    """
    f = features.transpose(0, 1)  # (S, N, D)
    square = f.square().sum(2)  # (S, N)
    squares = square[:, :, None] + square[:, None, :]
    distance2 = torch.baddbmm(squares, f, f.mT, alpha=-2)  # (S, N, N)
    distance = distance2.clamp(min=1e-12).sqrt()  # the square root has no gradient at zero
    same = labels[:, None] == labels  # (N, N)
    positive = distance.masked_fill(~same, 0).amax(2)
    negative = distance.masked_fill(same, torch.inf).amin(2)
    return F.relu(margin + positive - negative).mean(1)


def identity_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Logits (N, L, K), labels (N,) -> (L,): the mean cross entropy of each classifier.

    With label smoothing the target is 1 - smoothing for the label, plus smoothing / K for every
    class.
    """
    target = labels[:, None].expand(-1, logits.shape[1])  # (N, L)
    each = F.cross_entropy(logits.transpose(1, 2), target, reduction="none", label_smoothing=smoothing)
    return each.mean(0)


def center_loss(features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Features (N, S, D), labels (N,), centers (K, S, D) -> a scalar.

    The squared distance of a feature to the center of its identity, summed over slots, averaged
    over the batch. Wen et al. 2016, with the scale of PaddleClas.
    """
    return (features - centers[labels]).square().sum((1, 2)).mean()


def objective(triplet: Tensor, cross_entropy: Tensor, triplet_weight: float = 1.0, ce_weight: float = 2.0) -> Tensor:
    """The weighted sum of the two losses; the default weights are those of RRID.

    triplet: summed over slots. cross_entropy: summed over classifiers.
    """
    return triplet_weight * triplet + ce_weight * cross_entropy
