"""Losses on all slots at once.

Shapes: N images, S slots, D feature width, L classifiers, K identities.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from reid.models.layers import COSINE_SCALE

TEMPERATURE, SIMILARITY_TEMPERATURE = 4.0, 0.1  # of the softmax of logits and of cosines, in distillation


def batch_hard_triplet(features: Tensor, labels: Tensor, margin: float, soft: bool = False) -> Tensor:
    """Features (N, S, D), labels (N,) -> (S,): the batch-hard triplet loss of each slot.

    The mean over anchors of max(0, margin + hardest positive - hardest negative), with Euclidean
    distances of un-normalised features; soft: log(1 + exp(...)) instead of max(0, ...). Hermans et
    al. 2017 (arXiv 1703.07737).
    """
    f = features.transpose(0, 1)  # (S, N, D)
    square = f.square().sum(2)  # (S, N)
    squares = square[:, :, None] + square[:, None, :]
    distance2 = torch.baddbmm(squares, f, f.mT, alpha=-2)  # (S, N, N)
    distance = distance2.clamp(min=1e-12).sqrt()  # the square root has no gradient at zero
    same = labels[:, None] == labels  # (N, N)
    positive = distance.masked_fill(~same, 0).amax(2)
    negative = distance.masked_fill(same, torch.inf).amin(2)
    hinge = F.softplus if soft else F.relu
    return hinge(margin + positive - negative).mean(1)


def identity_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Logits (N, L, K), labels (N,) -> (L,): the mean cross entropy of each classifier.

    With label smoothing the target is 1 - smoothing for the label, plus smoothing / K for every
    class.
    """
    target = labels[:, None].expand(-1, logits.shape[1])  # (N, L)
    each = F.cross_entropy(logits.transpose(1, 2), target, reduction="none", label_smoothing=smoothing)
    return each.mean(0)


def circle_logits(logits: Tensor, labels: Tensor, margin: float = 0.35) -> Tensor:
    """Logits (N, L, K), COSINE_SCALE times cosines; labels (N,) -> logits (N, L, K) of the circle loss.

    With s a cosine and m the margin: scale * max(0, 1 + m - s) * (s - (1 - m)) for the label, and
    scale * max(0, s + m) * (s - m) for the other classes. The factors max(...) have no gradient. Sun
    et al. 2020 (arXiv 2002.10857); the scale and the default margin are FastReID's.
    """
    own = F.one_hot(labels, logits.shape[2]).bool()[:, None]  # (N, 1, K)
    cosine = logits / COSINE_SCALE
    s = cosine.detach()
    factor = torch.where(own, 1 + margin - s, s + margin).clamp(min=0)
    return COSINE_SCALE * factor * torch.where(own, cosine - (1 - margin), cosine - margin)


def center_loss(features: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Features (N, S, D), labels (N,), centers (K, S, D) -> a scalar.

    The squared distance of a feature to the center of its identity, summed over slots, averaged
    over the batch. Wen et al. 2016, with the scale of PaddleClas.
    """
    return (features - centers[labels]).square().sum((1, 2)).mean()


def imitation_loss(logits: Tensor, taught: Tensor) -> Tensor:
    """Logits (N, L, K), those of a teacher (N, L', K) -> (L,): how far each classifier is from the teacher.

    The teacher's logits are averaged over its classifiers. Hinton et al. 2015 (arXiv 1503.02531).
    """
    return TEMPERATURE**2 * divergence(logits, taught.mean(1), TEMPERATURE)


def similarity_loss(features: Tensor, taught: Tensor) -> Tensor:
    """Features (N, S, D), those of a teacher (N, S', D') -> a scalar: how far similarities are from the teacher's.

    For each image, the cosines of its descriptor (slots joined) with those of the other images, as
    probabilities. Passalis and Tefas 2018 (arXiv 1803.10837), with the softmax of Fang et al. 2021
    (arXiv 2101.04731).
    """
    return divergence(cosines(features)[:, None], cosines(taught), SIMILARITY_TEMPERATURE).sum()


def divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Logits (N, L, K), target (N, K) -> (L,): KL(softmax(target / t), softmax(logits / t)), mean over N."""
    log_q = F.log_softmax(logits / temperature, 2)
    log_p = F.log_softmax(target / temperature, 1)[:, None].expand_as(log_q)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(2).mean(0)


def cosines(features: Tensor) -> Tensor:
    """Features (N, S, D) -> (N, N - 1): the cosines of each descriptor with the others."""
    unit = F.normalize(features.flatten(1))
    others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (unit @ unit.T)[others].view(len(unit), -1)


def objective(triplet: Tensor, cross_entropy: Tensor, triplet_weight: float = 1.0, ce_weight: float = 2.0) -> Tensor:
    """The weighted sum of the two losses; the default weights are those of RRID.

    triplet: summed over slots. cross_entropy: summed over classifiers.
    """
    return triplet_weight * triplet + ce_weight * cross_entropy
