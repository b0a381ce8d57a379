"""Our model against outputs, losses, gradients and statistics of the published one (tests/golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.state import make_images, make_state

from reid.losses import batch_hard_triplet, identity_loss, objective
from reid.models import load_model, read_weights
from reid.models.published import from_published, published_names
from reid.models.rrid import RRID

GOLDEN = Path(__file__).parent / "golden"
STRIPES = (6, 4, 2)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "rrid_192x64.npz")


@pytest.fixture(scope="module")
def published():
    table = json.loads((GOLDEN / "state_names.json").read_text())
    return {name: torch.from_numpy(a.copy()) for name, a in make_state(1501, table).items()}


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(make_images(1501, 8, 192, 64))


@pytest.fixture(autouse=True)
def two_threads():
    """As many as the golden numbers were made with: hardest examples and maxima are discontinuous, so another order
    of float32 sums may choose others, and single gradients then differ by 2e-3."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture()
def model(published):
    state, stripes, classes = from_published(published)
    assert (stripes, classes) == (STRIPES, 10)
    model = RRID(classes, stripes)
    model.load_state_dict(state)
    return model


def close(got, expected, relative):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=relative * scale)


def test_eval_mode(model, images, golden):
    model.eval()
    with torch.inference_mode():
        features = model(images)
        logits = model.logits(images).transpose(0, 1)  # (45, 8, 10)
        descriptor = torch.nn.functional.normalize(((features + model(images.flip(3))) / 2).flatten(1))
    close(features.transpose(0, 1), golden["features"], 1e-5)
    q, a, b = logits[:15], logits[15:30], logits[30:]
    close(q[:12], golden["logits_relation"], 1e-5)
    close(a[:12], golden["logits_local"], 1e-5)
    close(b[:12], golden["logits_rest"], 1e-5)
    wholes = torch.stack([q[12:], a[12:], b[12:]], 1).flatten(0, 1)  # for n = 6, 4, 2: fused, max, rest
    close(wholes, golden["logits_global"], 1e-5)
    close(descriptor, golden["descriptor"], 1e-5)


def test_training_step(model, images, golden):
    """Losses, the gradient norm of each of the 429 published parameters, the running statistics after a step."""
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    features, logits = model.train()(images)
    triplet = batch_hard_triplet(features, labels, 1.2).sum()
    cross_entropy = identity_loss(logits, labels).sum()
    loss = objective(triplet, cross_entropy)
    loss.backward()
    for name, value in (("triplet", triplet), ("cross_entropy", cross_entropy), ("loss", loss)):
        assert value.item() == pytest.approx(float(golden[name]), rel=1e-6)

    gradients = to_published({k: p.grad for k, p in model.named_parameters()})
    assert sorted(gradients) == sorted(golden["grad_names"].tolist())
    for name, expected in zip(golden["grad_names"], golden["grad_norms"], strict=True):
        assert abs(gradients[name].norm().item() - expected) <= 1e-3 * expected + 1e-5, name

    buffers = to_published(dict(model.named_buffers()))
    for name, expected in zip(golden["buffer_names"], golden["buffer_norms"], strict=True):
        assert buffers[name].norm().item() == pytest.approx(expected, rel=1e-6), name


def to_published(tensors):
    """Ours -> {published name: tensor}, the inverse of from_published."""
    result = {k: v for k, v in tensors.items() if k.startswith("base.")}
    for layer, names in published_names(STRIPES).items():
        for key, tensor in tensors.items():
            if not key.startswith(layer + ".") or key.endswith("num_batches_tracked"):
                continue
            inner = {"weight": ".0.weight", "bias": ".0.bias"} if layer != "classifiers" else {}
            entry = key[len(layer) + 1 :]
            suffix = f".1.{entry.split('.')[1]}" if entry.startswith("norm.") else inner.get(entry, "." + entry)
            for name, part in zip(names, tensor.reshape(len(names), -1), strict=True):
                result[name + suffix] = part
    return result


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("classifiers", [True, False])
def test_published_state_dict_loads(published, images, golden, tmp_path, prefix, classifiers):
    path = tmp_path / "published.pth"
    torch.save({prefix + k: v for k, v in published.items() if classifiers or not k.startswith("fc_")}, path)
    with torch.inference_mode():
        close(load_model(path)(images).transpose(0, 1), golden["features"], 1e-5)
    assert read_weights(path)[1].stripes == STRIPES
