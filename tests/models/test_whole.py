"""Whole models of FastReID and torchreid: the imported model has the outputs of the original one."""

import argparse

import pytest
import torch
from conftest import run_import
from torch import nn
from torch.nn import functional as F
from torchvision import models as torchvision_models

from reid.errors import InputError
from reid.models.importing import import_weights
from reid.models.weights import read_weights

pytestmark = pytest.mark.usefixtures("full_resnet18")  # the other projects' heads are 512 wide
NORMALISATION = {
    "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1),
    "pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1),
}


class Network(nn.Module):
    """A torchvision ResNet up to its map, with the last stride of the other project."""

    def __init__(self, name, last_stride):
        super().__init__()
        network = getattr(torchvision_models, name)(weights=None)
        for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(part, getattr(network, part))
        if last_stride == 1:
            self.layer4[0].conv1.stride = self.layer4[0].downsample[0].stride = (1, 1)

    def map(self, x):
        for part in self.children():
            x = part(x) if part is not getattr(self, "classifier", None) else x
        return x


class Head(nn.Module):
    """FastReID's EmbeddingHead without reduction: `weight`, and a batch norm in `bottleneck`."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 512))
        self.bottleneck = nn.Sequential(nn.BatchNorm2d(512))


class BagTricks(nn.Module):
    """FastReID's Baseline with this head."""

    def __init__(self):
        super().__init__()
        self.backbone, self.heads = Network("resnet18", 1), Head()

    def forward(self, x):
        f = self.heads.bottleneck(F.adaptive_avg_pool2d(self.backbone.map(x), 1))[..., 0, 0]
        return f, F.linear(f, self.heads.weight)


class Torchreid(Network):
    """torchreid's resnet18: the classifier takes the pooled map."""

    def __init__(self):
        super().__init__("resnet18", 2)
        self.classifier = nn.Linear(512, 6)

    def forward(self, x):
        f = F.adaptive_avg_pool2d(self.map(x), 1).flatten(1)
        return f, self.classifier(f)


def trained(kind):
    """A model in eval mode whose batch norms change their input; biases of necks stay 0."""
    torch.manual_seed(0)
    model = kind()
    for name, value in model.named_buffers():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    for name, value in model.named_parameters():
        if "bn" in name:
            nn.init.uniform_(value, 0.2, 0.8)
    return model.eval()


def old_names(state):
    """As in the published files of FastReID."""
    state = {f"{k}".replace("heads.weight", "heads.classifier.weight"): v for k, v in state.items()}
    state["heads.bnneck.num_batches_tracked"] = state.pop("heads.bottleneck.0.num_batches_tracked")
    return state | NORMALISATION


def without_classifier(state):
    return {k: v for k, v in state.items() if k != "heads.weight"}


@pytest.mark.parametrize(
    ("kind", "change"), [(BagTricks, dict), (BagTricks, old_names), (BagTricks, without_classifier), (Torchreid, dict)]
)
def test_outputs_are_equal(kind, change, tmp_path, script):
    theirs = trained(kind)
    content = {"model": change(theirs.state_dict()), "optimizer": argparse.Namespace(lr=1), "iteration": 9}
    torch.save(content, tmp_path / "theirs.pth")
    done = run_import(script, tmp_path / "theirs.pth", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "strong_baseline on resnet18" in done.stdout and "256x128" in done.stdout
    model, config = read_weights(tmp_path / "out.pth")
    images = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        features, logits = theirs(images)
        torch.testing.assert_close(model(images)[:, 0], features)
        if change is without_classifier:
            assert model.num_classes == 0
            return
        model.training = True  # returns the logits; the layers stay in eval mode
        torch.testing.assert_close(model(images).logits[:, 0], logits)
    assert (config.h, config.w, model.num_classes) == (256, 128, 6)


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        (BagTricks, {"backbone.NL_2.0.g.weight": torch.ones(1)}, "non-local blocks"),
        (BagTricks, {"heads.pool_layer.p": torch.ones(1)}, "generalised mean"),
        (BagTricks, {"pixel_mean": torch.zeros(1, 3, 1, 1)}, "another pixel_mean"),
        (Torchreid, {"fc.1.running_mean": torch.ones(512)}, "ends with a ReLU"),
        (Torchreid, {"conv5.layers.0.weight": torch.ones(1)}, "PCB reduces all stripes"),
    ],
)
def test_other_heads_leave_the_backbone_and_the_reason(kind, more, words, tmp_path):
    theirs = kind().state_dict() | more
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
    imported = import_weights(tmp_path / "theirs.pth", tmp_path / "out.pth")
    assert "resnet18 without heads" in imported.kind and words in imported.kind
    assert all("heads" not in k and "classifier" not in k for k in torch.load(tmp_path / "out.pth"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda k: f"b1_head.{k}", "FastReID's MGN"),
        (lambda k: f"conv2.0.conv2a.{k}", "OSNet"),
        (lambda k: k.replace("bn1.", "bn1.IN."), "IBN"),
    ],
)
def test_other_backbones_are_refused_with_the_reason(change, words, tmp_path):
    theirs = {change(k): v for k, v in BagTricks().state_dict().items()}
    if words != "IBN":
        theirs = {k: v for k, v in theirs.items() if "layer4" not in k}
    torch.save(theirs, tmp_path / "theirs.pth")
    with pytest.raises(InputError, match=words):
        import_weights(tmp_path / "theirs.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()
