"""The other methods: each equal to its plain form, with the parameters that arithmetic and papers give."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reid.config import Config
from reid.errors import InputError
from reid.models import build_model
from reid.models.backbone import build_backbone
from reid.models.mgn import MGN
from reid.models.pcb import PCB
from reid.models.pretrained import read_start, start_from
from reid.models.rrid import RRID
from reid.models.strong_baseline import StrongBaseline
from reid.profiles import RECIPES, profile
from reid.variants import MODELS, check_model

RESNET50 = 23_508_032
BLOCKS_3_TO_6 = 5 * 1_117_184  # stage 3 without its first block: conv 1024-256, 256-256 3x3, 256-1024, their norms
STAGE_4 = 14_964_736


def numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small(model: str, backbone: str = "resnet18", classes: int = 5, **changes) -> nn.Module:
    torch.manual_seed(0)
    fields = {**RECIPES[model], "model": model, "backbone": backbone, **changes}
    built = build_model(Config(**fields), classes)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):  # statistics as after some training
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return built


@pytest.mark.parametrize("model, changes, expected", [
    ("baseline", {}, RESNET50 + 2048 * 512 + 3 * 512 + 513 * 751),
    ("strong_baseline", {}, RESNET50 + 2 * 2048 + 2048 * 751),
    ("strong_baseline", {"neck": "none"}, RESNET50 + 2049 * 751),
    ("pcb", {}, RESNET50 + 6 * (2049 * 256 + 2 * 256 + 257 * 751)),
    ("mgn", {}, RESNET50 + 2 * (BLOCKS_3_TO_6 + STAGE_4) + 8 * (2049 * 256 + 2 * 256 + 257 * 751)),
    ("rrid", {}, 49_922_627),
])  # fmt: skip
def test_parameters(model, changes, expected):
    assert numel(build_model(Config(**{**RECIPES[model], "model": model, **changes}), 751)) == expected


def test_stage_sizes():
    """The counts above, from the network itself."""
    base = build_backbone("resnet50")
    assert numel(base) == RESNET50
    assert numel(base.layer4) == STAGE_4
    assert numel(base.layer3[1:]) == BLOCKS_3_TO_6


@torch.no_grad()
def test_baseline_equals_its_plain_form():
    model, images = small("baseline").eval(), torch.randn(3, 3, 64, 32)
    x = model.base(images)
    assert x.shape == (3, model.base.channels, 2, 1)  # stride 32
    linear, norm = model.embed
    f = F.batch_norm(F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), linear.weight, linear.bias),
                     norm.running_mean, norm.running_var, norm.weight, norm.bias)  # fmt: skip
    torch.testing.assert_close(model(images), f[:, None])
    features, logits = model.train()(images)
    assert features.shape == (3, 1, 512) and logits.shape == (3, 1, 5)
    assert not torch.equal(logits, model.classifiers(features))  # dropout stands before the classifier


@torch.no_grad()
def test_strong_baseline_equals_its_plain_form():
    """The losses see the feature before the neck, the classifier and the test see it behind."""
    model, images = small("strong_baseline"), torch.randn(4, 3, 64, 32)
    assert not model.neck.bias.requires_grad and model.classifier.bias is None
    features, logits = model.train()(images)
    norm = F.batch_norm(features[:, 0], None, None, model.neck.weight, model.neck.bias, training=True)
    torch.testing.assert_close(logits[:, 0], norm @ model.classifier.weight.T)
    model.eval()
    pooled = model.base(images).mean((2, 3))
    n = model.neck
    torch.testing.assert_close(
        model(images)[:, 0], (pooled - n.running_mean) / (n.running_var + n.eps).sqrt() * n.weight + n.bias
    )
    without = small("strong_baseline", neck="none", last_stride=2).eval()
    torch.testing.assert_close(without(images)[:, 0], without.base(images).mean((2, 3)))


@torch.no_grad()
def test_pcb_equals_its_plain_form():
    model, images = small("pcb", stripes=(2,)).eval(), torch.randn(3, 3, 64, 32)
    x = model.base(images)  # (3, C, 4, 2)
    plain = torch.stack([x[:, :, :2].mean((2, 3)), x[:, :, 2:].mean((2, 3))], 1)
    torch.testing.assert_close(model(images), plain)
    model.train()
    model.dropout.p = 0.0
    features, logits = model(images)
    x = model.base(images)
    for i, rows in enumerate((x[:, :, :2], x[:, :, 2:])):
        linear, norm = model.reduce[i]
        h = F.batch_norm(linear(rows.mean((2, 3))), None, None, norm.weight, norm.bias, training=True)
        torch.testing.assert_close(features[:, i], h, rtol=1e-4, atol=1e-4)
        w, b = model.classifiers.weight[i], model.classifiers.bias[i]
        torch.testing.assert_close(logits[:, i], h @ w.T + b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mgn_equals_its_plain_form():
    model, images = small("mgn").eval(), torch.randn(2, 3, 96, 32)
    x = model.base.trunk(images)
    maps = [branch(x) for branch in model.base.branches]
    assert [m.shape[2] for m in maps] == [3, 6, 6]  # strides 32, 16, 16
    vectors = [
        maps[0].amax((2, 3)),
        maps[1].amax((2, 3)), maps[1][:, :, :3].amax((2, 3)), maps[1][:, :, 3:].amax((2, 3)),
        maps[2].amax((2, 3)), *(maps[2][:, :, 2 * i : 2 * i + 2].amax((2, 3)) for i in range(3)),
    ]  # fmt: skip
    n, out = model.reduce.norm, []
    for i, v in enumerate(vectors):
        y, s = v @ model.reduce.weight[i].T + model.reduce.bias[i], slice(256 * i, 256 * (i + 1))
        out.append(F.relu(F.batch_norm(y, n.running_mean[s], n.running_var[s], n.weight[s], n.bias[s])))
    torch.testing.assert_close(model(images), torch.stack(out, 1), rtol=1e-4, atol=1e-5)
    assert model.bands == ((0, 1), (0, 1), (0, 0.5), (0.5, 1), (0, 1), (0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1))
    features, logits = model.train()(images)
    assert features.shape == (2, 3, 256) and logits.shape == (2, 8, 5)  # triplets on the three wholes only


@pytest.mark.usefixtures("full_resnet18")
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2", "efficientnet_v2_s"])
@pytest.mark.parametrize("last_stride", [1, 2])
@torch.no_grad()
def test_cut_backbones_are_the_whole(backbone, last_stride):
    base = build_backbone(backbone, last_stride).eval()
    images = torch.randn(1, 3, 64, 32)
    trunk, rest = base.cut()
    assert trunk(images).shape[2] == 4  # stride 16
    assert torch.equal(rest(trunk(images)), base(images))
    assert base(images).shape == (1, base.channels, 4 // last_stride, 2 // last_stride)
    assert {*trunk.state_dict(), *rest.state_dict()} == {*base.state_dict()}


def test_every_branch_starts_from_imagenet(tmp_path):
    whole = build_backbone("resnet18", 2).eval()
    torch.save({**whole.state_dict(), "fc.weight": torch.zeros(2)}, tmp_path / "w.pth")
    model = small("mgn").eval()
    start_from(model, read_start(str(tmp_path / "w.pth"), "resnet18"), "resnet18", "")
    images = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        first, second, third = model.base(images)
        assert torch.equal(first, whole(images)) and torch.equal(second, third)
    torch.save(build_backbone("resnet34").state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"does not fit resnet18"):
        start_from(model, read_start(str(tmp_path / "w.pth"), "resnet18"), "resnet18", "")


@torch.no_grad()
def test_rrid_on_another_strong_backbone():
    """The heads need `base` and its channels only."""
    model = RRID(0, (2,), "efficientnet_v2_s").eval()
    assert model(torch.randn(1, 3, 64, 32)).shape == (1, 3, 256)
    assert model.base.channels == 1280
    assert numel(model.base) == 20_177_488  # torchvision's 21,458,488 without the classifier 1280 x 1000 + 1000


@pytest.mark.parametrize("model", MODELS)
def test_bands_cover_the_slots(model):
    built = build_model(profile("demo", model), 0).eval()
    with torch.no_grad():
        slots = built(torch.randn(1, 3, 192, 64)).shape[1]
    assert len(built.bands) == slots
    assert all(0 <= top < bottom <= 1 for top, bottom in built.bands)


@pytest.mark.parametrize("build, words", [
    (lambda: MGN(0, (), "resnet18"), "--model mgn needs a stripe count"),
    (lambda: MGN(0, (2, 2), "resnet18"), "--stripes 2 2 names a stripe count twice"),
    (lambda: PCB(0, 1, "resnet18"), "the smallest stripe count is 2"),
    (lambda: StrongBaseline(0, "resnet18", neck="bn"), "--neck bn is unknown; choose from none, bnneck"),
    (lambda: StrongBaseline(0, "resnet18", 3), "--last_stride 3 is unknown; choose from 1, 2"),
    (lambda: build_backbone("vgg"), "--backbone vgg is unknown; choose from resnet50"),
    (lambda: check_model("pbc"), "--model pbc is unknown"),
])  # fmt: skip
def test_arguments_that_a_model_does_not_take(build, words):
    with pytest.raises(InputError, match=words):
        build()


@pytest.mark.parametrize("model, arguments", [("pcb", {"last_stride": 2}), ("mgn", {"neck": "bnneck"})])
def test_configuration_and_models_give_the_same_message(model, arguments):
    fields = {**RECIPES[model], "model": model}
    with pytest.raises(InputError) as of_model:
        check_model(model, fields["stripes"], **arguments)
    with pytest.raises(InputError) as of_config:
        Config(**fields | arguments)
    assert str(of_model.value) == str(of_config.value)


@pytest.mark.parametrize("model", MODELS)
def test_no_classifiers_cannot_train(model):
    built = small(model, classes=0).train()
    with pytest.raises(InputError, match="no classifiers"):
        built(torch.randn(2, 3, 192, 32))
