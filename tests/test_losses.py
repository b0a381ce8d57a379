"""Losses against one slot, one anchor, one classifier at a time."""

import pytest
import torch
from torch.nn import functional as F

from reid.losses import batch_hard_triplet, identity_loss


def plain_triplet(features, labels, margin):
    losses = []
    for s in range(features.shape[1]):
        anchors = []
        for i, anchor in enumerate(features[:, s]):
            distances = (features[:, s] - anchor).square().sum(1).clamp(min=1e-12).sqrt()
            hardest_positive = max(distances[j] for j in range(len(labels)) if labels[j] == labels[i])
            hardest_negative = min(distances[j] for j in range(len(labels)) if labels[j] != labels[i])
            anchors.append(F.relu(margin + hardest_positive - hardest_negative))
        losses.append(sum(anchors) / len(anchors))
    return torch.stack(losses)


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.2])
def test_triplet_and_its_gradient(margin):
    torch.manual_seed(1)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
    features = torch.randn(8, 3, 5, dtype=torch.double, requires_grad=True)
    expected = plain_triplet(features, labels, margin)
    torch.testing.assert_close(batch_hard_triplet(features, labels, margin), expected)
    (want,) = torch.autograd.grad(expected.sum(), features)
    (got,) = torch.autograd.grad(batch_hard_triplet(features, labels, margin).sum(), features)
    torch.testing.assert_close(got, want)


def test_triplet_by_hand():
    """On a line: 0 and 3 are one identity, 4 the other; margin 1.
    Anchor 0: max(0, 1 + 3 - 4) = 0; anchor 3: 1 + 3 - 1 = 3; anchor 4: 1 + 0 - 1 = 0. Mean 1."""
    features = torch.tensor([0.0, 3.0, 4.0]).view(3, 1, 1)
    assert batch_hard_triplet(features, torch.tensor([0, 0, 1]), 1.0).item() == pytest.approx(1, abs=1e-5)


def test_same_image_twice_has_a_finite_gradient():
    features = torch.ones(4, 1, 2, requires_grad=True)
    batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]), 1.2).sum().backward()
    assert torch.isfinite(features.grad).all()


def test_identity_loss():
    torch.manual_seed(2)
    logits, labels = torch.randn(6, 4, 7, dtype=torch.double), torch.tensor([0, 6, 3, 3, 1, 2])
    expected = torch.stack([F.cross_entropy(logits[:, i], labels) for i in range(4)])
    torch.testing.assert_close(identity_loss(logits, labels), expected)
