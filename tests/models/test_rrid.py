"""The batched model against the equations written out one stripe at a time."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reid.errors import InputError
from reid.models.backbone import build_backbone
from reid.models.layers import check_height
from reid.models.pooling import band_maxima
from reid.models.rrid import RRID
from reid.variants import Variant


def plain_slot(layer, i, x):
    """Slot i of a SlotLayer as a 1x1 convolution + batch norm + ReLU on x (N, in), in the layer's mode."""
    outputs, inputs = layer.weight.shape[1:]
    convolution = nn.Conv2d(inputs, outputs, 1).double()
    convolution.weight.data = layer.weight[i].data[:, :, None, None]
    convolution.bias.data = layer.bias[i].data
    norm = nn.BatchNorm2d(outputs).double().train(layer.training)
    mine = slice(i * outputs, (i + 1) * outputs)
    norm.weight.data, norm.bias.data = layer.norm.weight.data[mine], layer.norm.bias.data[mine]
    norm.running_mean, norm.running_var = layer.norm.running_mean[mine].clone(), layer.norm.running_var[mine].clone()
    return F.relu(norm(convolution(x[:, :, None, None])))[:, :, 0, 0]


def plain_forward(model, x, relation, pooling, contrast):
    """Map x (N, C, h, w) -> features (N, S, D) and the list of features with classifiers."""
    q, a, b = [], [], []
    slot, related = 0, 0

    def relate(p, r, has_relation):
        nonlocal slot, related
        a_i = plain_slot(model.E_p, slot, p)
        slot += 1
        if not has_relation:
            q.append(a_i)
            return
        b_i = plain_slot(model.E_r, related, r)
        q.append(a_i + plain_slot(model.R, related, torch.cat([a_i, b_i], 1)))
        a.append(a_i)
        b.append(b_i)
        related += 1

    cut = {n: [s.amax((2, 3)) for s in x.chunk(n, 2)] for n in model.stripes}
    for n in model.stripes:
        for i in range(n):
            rest = [cut[n][j] for j in range(n) if j != i]
            relate(cut[n][i], sum(rest) / (n - 1), relation == "one_vs_rest")
    for n in model.stripes if pooling != "none" else ():
        p_max = x.amax((2, 3))
        total = sum(cut[n])
        c = (total - p_max) / (n - 1) if contrast == "mean_of_rest" else total / n - p_max
        relate(x.mean((2, 3)) if pooling == "avg" else p_max, c, pooling == "gcp")
    return torch.stack(q, 1), q + a + b


VARIANTS = [
    ((6, 4, 2), "one_vs_rest", "gcp", "mean_of_rest", 15, 45),
    ((6, 4, 2), "one_vs_rest", "gcp", "mean_minus_max", 15, 45),
    ((6, 4, 2), "none", "max", "mean_of_rest", 15, 15),
    ((6, 4, 2), "none", "gcp", "mean_of_rest", 15, 21),
    ((6, 4, 2), "one_vs_rest", "max", "mean_of_rest", 15, 39),
    ((4, 2), "one_vs_rest", "avg", "mean_of_rest", 8, 20),
    ((3,), "one_vs_rest", "none", "mean_of_rest", 3, 9),
    ((6,), "one_vs_rest", "gcp", "mean_of_rest", 7, 21),
    ((2,), "none", "none", "mean_of_rest", 2, 2),
]


@pytest.mark.parametrize("stripes, relation, pooling, contrast, slots, heads", VARIANTS)
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_equations(stripes, relation, pooling, contrast, slots, heads, training):
    torch.manual_seed(0)
    variant = Variant(relation, pooling, contrast)
    model = RRID(5, stripes, "resnet18", variant, dim=8).double().train(training)
    for layer in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 1.5)
        nn.init.normal_(layer.bias)
    x = torch.randn(4, model.base.channels, 12, 4, dtype=torch.double)
    expected, with_classifier = plain_forward(model, x, relation, pooling, contrast)
    q, a, b = model.heads(x)
    assert q.shape == (4, slots, 8)
    torch.testing.assert_close(q, expected)
    logits = model.classify(q, a, b)
    assert logits.shape == (4, heads, 5)
    each = [F.linear(f, model.classifiers.weight[i], model.classifiers.bias[i]) for i, f in enumerate(with_classifier)]
    torch.testing.assert_close(logits, torch.stack(each, 1))


def test_cross_entropy_only_on_the_final_features():
    model = RRID(5, (2,), "resnet18", Variant(ce_on="final"), dim=8).train()
    features, logits = model(torch.randn(2, 3, 64, 32))
    assert (features.shape, logits.shape) == ((2, 3, 8), (2, 3, 5))


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts():
    """The counts of the published model: backbone, heads, classifiers; P-6 alone."""
    model = RRID(751)
    assert count(model.base) == 23_508_032
    assert count(model.E_p) + count(model.E_r) + count(model.R) == 17_729_280 == 15 * 1_181_952
    assert count(model.classifiers) == 45 * 257 * 751 == 8_685_315
    assert count(model) == 49_922_627
    assert count(RRID(0)) == 41_237_312
    assert count(RRID(0, (6,))) - 23_508_032 == 8_273_664


@pytest.mark.usefixtures("full_resnet18")
@pytest.mark.parametrize("name, channels", [("resnet18", 512), ("resnet34", 512), ("resnet101", 2048),
                                            ("resnet50", 2048), ("mobilenet_v2", 1280)])  # fmt: skip
def test_backbones_have_output_stride_16(name, channels):
    backbone = build_backbone(name).eval()
    with torch.inference_mode():
        assert backbone(torch.zeros(1, 3, 96, 32)).shape == (1, channels, 6, 2)
    assert backbone.channels == channels


def test_first_classifiers_know_nothing():
    """Untrained classifiers give ln C each: 2 x 45 x ln 751 = 595.9 for the whole sum."""
    torch.manual_seed(0)
    model = RRID(751, backbone="resnet18").train()
    _, logits = model(torch.randn(4, 3, 192, 64))
    loss = 2 * 45 * F.cross_entropy(logits.flatten(0, 1), torch.arange(4).repeat_interleave(45))
    assert loss.item() == pytest.approx(595.9, abs=0.5)


@pytest.mark.parametrize("height, stripes, words", [
    (288, (6, 4, 2), ["map height 18", "4 stripes", "--h 192", "--h 384"]),
    (100, (6, 4, 2), ["--h 192"]),
    (384, (5,), ["map height 24", "5 stripes", "--h 320", "--h 400"]),
])  # fmt: skip
def test_height_that_cannot_be_cut(height, stripes, words):
    with pytest.raises(InputError) as error:
        check_height(height, stripes)
    assert all(word in str(error.value) for word in words), error.value
    with pytest.raises(InputError):
        RRID(0, stripes, "resnet18").eval()(torch.zeros(1, 3, height, 32))


@pytest.mark.parametrize("wrong, words", [
    ({"variant": Variant(relation="rest")}, "--relation rest is unknown; choose from one_vs_rest, none"),
    ({"variant": Variant(pooling="mean")}, "--pooling mean is unknown"),
    ({"variant": Variant(contrast="max")}, "--contrast max is unknown"),
    ({"variant": Variant(ce_on="q")}, "--ce_on q is unknown"),
    ({"stripes": (1,)}, "--stripes 1: the smallest stripe count is 2"),
    ({"stripes": (6, 6)}, "--stripes 6 6 names a stripe count twice"),
    ({"stripes": ()}, "--model rrid needs a stripe count"),
    ({"backbone": "vgg"}, "--backbone vgg is unknown"),
])  # fmt: skip
def test_unknown_arguments(wrong, words):
    with pytest.raises(InputError, match=words):
        RRID(0, **{"backbone": "resnet18", **wrong})


def test_no_classifiers_cannot_train():
    with pytest.raises(InputError, match="no classifiers"):
        RRID(0, (2,), "resnet18").train()(torch.randn(2, 3, 64, 32))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_band_maxima_equal_max_pooling(layout, dtype):
    """Values and gradients, ties included (integers have many), in both layouts of the map."""
    x = torch.randint(0, 4, (3, 5, 12, 4)).to(dtype).contiguous(memory_format=layout).requires_grad_()
    gradient = torch.randn(3, 6, 5).to(dtype)
    plain = F.max_pool2d(x, (2, 4)).squeeze(3).transpose(1, 2)
    fast = band_maxima(x, 6)
    assert torch.equal(fast, plain)
    (want,), (got,) = (torch.autograd.grad(y, x, gradient) for y in (plain, fast))
    assert torch.equal(got, want) and got.is_contiguous(memory_format=layout)
