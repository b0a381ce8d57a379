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


def identity_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Logits (N, L, K), labels (N,) -> (L,): the cross entropy of each classifier, mean over the batch. With label
    smoothing the target is 1 - smoothing on the label and smoothing / K on every class."""
    target = labels[:, None].expand(-1, logits.shape[1])
    return F.cross_entropy(logits.transpose(1, 2), target, reduction="none", label_smoothing=smoothing).mean(0)


def center_loss(features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Features (N, S, D), labels (N,), centers (K, S, D) -> the squared distance of a feature to the center of its
    identity, summed over slots, mean over the batch. Wen et al. 2016, as PaddleClas scales it."""
    return (features - centers[labels]).square().sum((1, 2)).mean()


def objective(triplet: Tensor, cross_entropy: Tensor, triplet_weight: float = 1.0, ce_weight: float = 2.0) -> Tensor:
    """RRID's loss from the sum of the triplets over slots and the sum of the cross entropies over classifiers; other
    methods have other weights."""
    return triplet_weight * triplet + ce_weight * cross_entropy
