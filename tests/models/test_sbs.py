"""SBS: pooling, circle loss and soft margin equal to plain forms in float64, IBN, the frozen backbone, resuming."""

import math

import pytest
import torch
from conftest import metrics, same, state_of
from torch import nn

from reid.config import Config
from reid.errors import InputError, Interrupted
from reid.losses import batch_hard_triplet, circle_logits
from reid.models import build_model
from reid.models.backbone import IBN_FILES, build_backbone, imagenet_file
from reid.models.sbs import SBS, GeM
from reid.profiles import RECIPES, from_flags, profile
from reid.training import trainer
from reid.training.schedule import is_frozen, rate_factor
from reid.training.step import TrainStep

TORCHVISION = 25_557_032  # published parameters of ResNet-50, with its classifier


def assert_same_gradients(got, want, *inputs):
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), inputs), torch.autograd.grad((want * weight).sum(), inputs)
    ):
        torch.testing.assert_close(a, b)


def test_gem_is_its_definition():
    """One channel of one image after the other; negative values count as eps."""
    torch.manual_seed(0)
    pool, x = GeM().double(), torch.randn(2, 3, 4, 2, dtype=torch.double, requires_grad=True)
    rows = []
    for image in x:
        means = [sum(max(v, torch.tensor(1e-6)) ** pool.p for v in channel.flatten()) / 8 for channel in image]
        rows.append(torch.cat([mean ** (1 / pool.p) for mean in means]))
    assert_same_gradients(pool(x), torch.stack(rows), x, pool.p)
    torch.testing.assert_close(GeM(1.0).double()(x.abs()), x.abs().mean((2, 3)))


def test_circle_logits_are_their_definition():
    torch.manual_seed(0)
    cosines = (torch.rand(4, 2, 3, dtype=torch.double) * 2 - 1).requires_grad_()
    labels, m, g = torch.tensor([0, 2, 1, 1]), 0.35, 64
    with torch.no_grad():
        cosines[0, 0, 1] = -0.9  # a class so far off that its factor is 0
    want = []
    for i, label in enumerate(labels):
        for slot in cosines[i]:
            for k, s in enumerate(slot):
                value = s.item()
                if k == label:
                    want.append(g * max(0, 1 + m - value) * (s - (1 - m)))
                else:
                    want.append(g * max(0, value + m) * (s - m))
    assert_same_gradients(circle_logits(64 * cosines, labels), torch.stack(want).view(4, 2, 3), cosines)


def test_soft_margin():
    """Anchors at 0 and 3 of one identity, 4 of the other: log(1 + e^d) with d = 3 - 4, 3 - 1 and 0 - 1."""
    features = torch.tensor([0.0, 3.0, 4.0], dtype=torch.double).view(3, 1, 1)
    expected = sum(math.log(1 + math.exp(d)) for d in (-1, 2, -1)) / 3
    got = batch_hard_triplet(features, torch.tensor([0, 0, 1]), 0.0, soft=True)
    assert got.item() == pytest.approx(expected, abs=1e-5)


def test_parameters():
    """torchvision's count without its classifier: a half instance norm has as many parameters as the batch norm it
    replaces. Then p, the neck and 751 class weights without bias."""
    resnet = TORCHVISION - (2048 * 1000 + 1000)
    model = build_model(profile("paper", "sbs"), 751)
    assert sum(p.numel() for p in model.parameters()) == resnet + 1 + 2 * 2048 + 2048 * 751


@torch.no_grad()
def test_sbs_is_its_plain_form():
    torch.manual_seed(0)
    model, images = SBS(5, "resnet18_ibn_a"), torch.randn(4, 3, 64, 32)
    assert not model.neck.bias.requires_grad
    features, logits = model.train()(images)
    f = model.base(images).clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)
    f = (f - f.mean(0)) / (f.var(0, correction=0) + model.neck.eps).sqrt()
    torch.testing.assert_close(features[:, 0], f)  # for the triplet loss
    w = model.classifier.weight
    cosines = torch.stack([torch.stack([a @ b / a.norm() / b.norm() for b in w]) for a in f])
    torch.testing.assert_close(logits[:, 0], 64 * cosines, rtol=1e-4, atol=1e-3)
    n = model.eval().neck
    pooled = model.pool(model.base(images))
    torch.testing.assert_close(model(images)[:, 0], (pooled - n.running_mean) / (n.running_var + n.eps).sqrt())


@torch.no_grad()
def test_ibn():
    """The first norms of stages 1 to 3: each image for itself in half of the channels, the batch in the others."""
    base = build_backbone("resnet18_ibn_a")
    names = [name for name, module in base.named_modules() if isinstance(module, nn.InstanceNorm2d)]
    assert names == [f"layer{stage}.{block}.bn1.IN" for stage in (1, 2, 3) for block in (0, 1)]
    norm = base.layer1[0].bn1.double()
    half = norm.BN.num_features
    x = torch.randn(3, 2 * half, 4, 2, dtype=torch.double)
    own, joint = x[:, :half], x[:, half:]
    want = [
        (part - part.mean(dims, keepdim=True)) / (part.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
        for part, dims in ((own, (2, 3)), (joint, (0, 2, 3)))
    ]
    torch.testing.assert_close(norm(x), torch.cat(want, 1))


def test_ibn_weights_are_not_those_of_the_plain_network(tmp_path):
    for name in ("resnet50-0676ba61.pth", IBN_FILES["resnet50_ibn_a"]):
        (tmp_path / name).write_bytes(b"")
    assert imagenet_file("resnet50", tmp_path).name == "resnet50-0676ba61.pth"
    assert imagenet_file("resnet50_ibn_a", tmp_path).name == IBN_FILES["resnet50_ibn_a"]


def test_schedule():
    """FastReID's 60 epochs: flat up to 30, half way down at 45. The backbone is frozen for the first 5."""
    c = Config(**{**RECIPES["sbs"], "model": "sbs", "warmup_epochs": 0})
    factors = [rate_factor(c, 200 * (epoch - 1), 200 * 60) for epoch in (1, 30, 31, 46)]
    assert factors == pytest.approx([1, 1, 1, 0.5])
    assert rate_factor(c, 11_999, 12_000) < 1e-6
    assert [is_frozen(c, step, 12_000) for step in (0, 999, 1000)] == [True, True, False]


@pytest.mark.parametrize("given, words", [
    ({"flat_epochs": 3}, "--flat_epochs belongs to --schedule cosine, not to staircase"),
    ({"flat_epochs": 80, "schedule": "cosine"}, "--flat_epochs 80 is not less than --epochs 80"),
    ({"soft_margin": True, "triplet_weight": 0.0}, "--soft_margin changes the triplet loss"),
    ({"freeze_epochs": 80}, "--freeze_epochs 80 is not less than --epochs 80"),
])  # fmt: skip
def test_contradictions(given, words):
    with pytest.raises(InputError, match=words):
        from_flags(given)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_frozen_backbone_does_not_change(optimizer):
    """No weight, no running statistics, no momentum; the heads learn."""
    config = Config(**{**RECIPES["sbs"], "model": "sbs", "backbone": "resnet18_ibn_a", "optimizer": optimizer})
    step = TrainStep(build_model(config, 3), config, torch.device("cpu"))
    before = {k: v.clone() for k, v in step.model.state_dict().items()}
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 0, 2, 2])
    step(images, labels, (0.1, 0.1), frozen=True)
    changed = {k.split(".")[0] for k, v in step.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"pool", "neck", "classifier"}
    assert not any(p in step.optimizer.state for p in step.model.base.parameters())
    step(images, labels, (0.1, 0.1))
    assert "base" in {k.split(".")[0] for k, v in step.model.state_dict().items() if not torch.equal(v, before[k])}


@pytest.mark.slow
def test_resume_across_the_end_of_the_freeze(tiny, tmp_path, monkeypatch):
    """Stopped while the backbone is frozen (6 of 24 steps) and in the cosine (from 12): the same bits."""
    flags = {"model": "sbs", "backbone": "resnet18_ibn_a", "dataset_type": ("tiny",), "dataset_path": str(tiny),
             "pretrained": "none", "h": 64, "w": 32, "batch_size": 8, "batch_sample": 4, "visits": 4, "epochs": 8,
             "freeze_epochs": 2, "flat_epochs": 4, "warmup_epochs": 1, "max_steps": 24, "exp_dir": str(tmp_path),
             "steps_per_log": 1}  # fmt: skip
    straight = trainer.train(from_flags({**flags, "name": "straight"}))
    must_stop = trainer.Trainer.must_stop
    cut = {**flags, "name": "cut"}
    for stop in (4, 17):
        monkeypatch.setattr(trainer.Trainer, "must_stop", lambda self, *_, stop=stop: self.step == stop)
        with pytest.raises(Interrupted):
            trainer.train(from_flags(cut))
        cut["resume"] = "newest"
    monkeypatch.setattr(trainer.Trainer, "must_stop", must_stop)
    weights = trainer.train(from_flags(cut))
    assert same(state_of(weights), state_of(straight))
    a, b = ([m for m in metrics(w.parent) if "loss" in m] for w in (straight, weights))
    assert a == b
