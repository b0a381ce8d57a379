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


class HalfNorm(nn.Module):
    """FastReID's IBN: an instance norm for the first half of the channels."""

    def __init__(self, channels):
        super().__init__()
        self.IN, self.BN = nn.InstanceNorm2d(channels // 2, affine=True), nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x):
        first, second = x.split(self.IN.num_features, 1)
        return torch.cat((self.IN(first), self.BN(second)), 1)


class Head(nn.Module):
    """FastReID's EmbeddingHead without reduction: `weight`, and a batch norm in `bottleneck`."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 512))
        self.bottleneck = nn.Sequential(nn.BatchNorm2d(512))


class BagTricks(nn.Module):
    """FastReID's Baseline with this head. Its ResNets pool the stem without padding."""

    def __init__(self):
        super().__init__()
        self.backbone, self.heads = Network("resnet18", 1), Head()
        self.backbone.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)

    def pool(self, x):
        return F.adaptive_avg_pool2d(x, 1)

    def forward(self, x):
        f = self.heads.bottleneck(self.pool(self.backbone.map(x)))[..., 0, 0]
        return f, F.linear(f, self.heads.weight)


class BagTricksIBN(BagTricks):
    """With IBN-a: the first norm of the blocks in stages 1 to 3."""

    def __init__(self):
        super().__init__()
        for stage in (self.backbone.layer1, self.backbone.layer2, self.backbone.layer3):
            for block in stage:
                block.bn1 = HalfNorm(block.bn1.num_features)


class SBS(BagTricksIBN):
    """Without non-local blocks: a learned generalised mean, a classifier of cosines."""

    def __init__(self):
        super().__init__()
        self.heads.pool_layer = nn.Module()
        self.heads.pool_layer.p = nn.Parameter(torch.tensor([2.5]))

    def pool(self, x):
        p = self.heads.pool_layer.p
        return F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(p), 1).pow(1 / p)

    def forward(self, x):
        f, _ = super().forward(x)
        return f, 64 * F.linear(F.normalize(f), F.normalize(self.heads.weight))


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
    ("kind", "change", "model_name"),
    [
        (BagTricks, dict, "strong_baseline on resnet18"),
        (BagTricks, old_names, "strong_baseline on resnet18"),
        (BagTricks, without_classifier, "strong_baseline on resnet18"),
        (BagTricksIBN, dict, "strong_baseline on resnet18_ibn_a"),
        (SBS, dict, "sbs on resnet18_ibn_a"),
        (Torchreid, dict, "strong_baseline on resnet18"),
    ],
)
def test_outputs_are_equal(kind, change, model_name, tmp_path, script):
    theirs = trained(kind)
    content = {"model": change(theirs.state_dict()), "optimizer": argparse.Namespace(lr=1), "iteration": 9}
    torch.save(content, tmp_path / "theirs.pth")
    done = run_import(script, tmp_path / "theirs.pth", tmp_path)
    assert done.returncode == 0, done.stderr
    h = 384 if kind is SBS else 256
    assert f"{model_name}, " in done.stdout and f"{h}x128" in done.stdout
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
    assert (config.h, config.w, model.num_classes) == (h, 128, 6)


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        (BagTricks, {"backbone.NL_2.0.g.weight": torch.ones(1)}, "non-local blocks"),
        (SBS, {"backbone.NL_3.2.W.0.weight": torch.ones(1)}, "non-local blocks"),
        (BagTricks, {"pixel_mean": torch.zeros(1, 3, 1, 1)}, "another pixel_mean"),
        (Torchreid, {"fc.1.running_mean": torch.ones(512)}, "ends with a ReLU"),
        (Torchreid, {"conv5.layers.0.weight": torch.ones(1)}, "PCB reduces all stripes"),
    ],
)
def test_other_heads_leave_the_backbone_and_the_reason(kind, more, words, tmp_path):
    theirs = kind().state_dict() | more
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
    imported = import_weights(tmp_path / "theirs.pth", tmp_path / "out.pth")
    assert "without heads" in imported.kind and words in imported.kind
    assert all("heads" not in k and "classifier" not in k for k in torch.load(tmp_path / "out.pth"))


MGN = """backbone.0.weight backbone.1.weight backbone.1.running_mean backbone.4.0.conv1.weight backbone.6.conv1.weight
    b1.0.0.conv1.weight b1.1.0.downsample.0.weight b1_head.pool_layer.p b1_head.bottleneck.0.weight b1_head.weight
    b1_head.bottleneck.1.running_var b2.0.0.conv1.weight b21_head.weight b33_head.bottleneck.1.bias"""
OSNET = """conv1.conv.weight conv1.bn.running_mean conv2.0.conv1.conv.weight conv2.0.conv2a.conv1.weight
    conv2.0.conv2a.conv2.weight conv2.0.gate.fc1.weight conv2.0.conv3.conv.weight conv2.2.0.conv.weight
    conv5.conv.weight fc.0.weight fc.1.running_mean classifier.weight"""
SQUEEZED = "backbone.conv1.weight backbone.layer1.0.conv1.weight backbone.layer1.0.se.fc.0.weight heads.weight"


@pytest.mark.parametrize(
    ("names", "words"),
    [(MGN, "FastReID's MGN"), (OSNET, "an OSNet"), (SQUEEZED, "squeeze-and-excitation")],
    ids=["mgn", "osnet", "se"],
)
def test_other_networks_are_refused_with_the_reason(names, words, tmp_path):
    """Names of tensors as in the files of both projects."""
    torch.save({"model": {name: torch.ones(2) for name in names.split()}}, tmp_path / "theirs.pth")
    with pytest.raises(InputError, match=words):
        import_weights(tmp_path / "theirs.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()
