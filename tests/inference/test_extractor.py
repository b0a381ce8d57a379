"""The extractor gives the descriptors of the training model in eval mode; folding batch norms is exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_weights, plain
from PIL import Image as PILImage
from torch import nn

import reid
from reid.errors import InputError
from reid.inference.engines import BOTH
from reid.inference.prepare import fold
from reid.models.layers import SlotLayer


def test_extractor_equals_the_plain_form(weights, images):
    extractor = reid.Extractor(weights, batch_size=5)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in extractor.engine.model.modules())
    expected = plain(weights, images[:12])
    np.testing.assert_allclose(extractor(images[:12]), expected, atol=1e-4 * np.abs(expected).max())
    arrays = [np.asarray(PILImage.open(p)) for p in images[:12]]
    np.testing.assert_array_equal(extractor(arrays), extractor(images[:12]))
    alone = reid.Extractor(weights, flip=False)(images[:2])
    np.testing.assert_allclose(alone, plain(weights, images[:2], False), atol=1e-5)
    assert (reid.Extractor(weights, precision="bf16")(images[:12]) * expected).sum(1).min() > 0.99
    assert extractor([]).shape[0] == 0


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_mirror_images_in_the_same_forward_pass(backbone, tmp_path):
    """The same descriptors as with a forward pass of their own, also of no image; only up to `both` images."""
    engine = reid.Extractor(make_weights(tmp_path / "w.pth", backbone=backbone)).engine
    sizes = []
    engine.model.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    images = torch.randint(0, 256, (BOTH + 1, 3, 64, 32), dtype=torch.uint8)
    for count in (0, 1, BOTH, BOTH + 1):
        found, expected = engine(images[:count]), replace(engine, both=-1)(images[:count])
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert sizes == [0, 0, 0, 2, 1, 1, 2 * BOTH, BOTH, BOTH, *[BOTH + 1] * 4]


@pytest.mark.parametrize("changes", [{"backbone": "mobilenet_v2"}, {"relation": "none", "pooling": "avg"}])
def test_folding_other_models(changes, tmp_path, images):
    path = make_weights(tmp_path / "w.pth", **changes)
    np.testing.assert_allclose(reid.Extractor(path)(images[:3]), plain(path, images[:3]), atol=1e-5)


def test_folding_is_by_what_feeds_what():
    """Order of definition says nothing: a norm after another layer, and a convolution used twice, are left."""

    class Tricky(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.late = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.b, self.own = nn.Conv2d(4, 4, 1, groups=2), nn.BatchNorm2d(4)
            self.twice, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.late(self.own(self.b(self.a(x).relu())).relu())
            return self.twice(self.norm(self.twice(x))).mean((2, 3))[:, None]

    torch.manual_seed(0)
    model = Tricky().eval()
    for norm in (model.late, model.own, model.norm):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 8, 4)
    with torch.inference_mode():
        expected = model(x)
        folded = fold(model, (8, 4))
        torch.testing.assert_close(folded(x), expected)
    kinds = [type(m).__name__ for m in (folded.late, folded.own, folded.norm)]
    assert kinds == ["BatchNorm2d", "Identity", "BatchNorm2d"]


def test_slot_layers_fold_exactly():
    torch.manual_seed(0)
    layer = SlotLayer(3, 5, 4).double().eval()
    layer.norm.running_mean.uniform_(-1, 1)
    layer.norm.running_var.uniform_(0.5, 2)

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x.double().mean((2, 3))[:, None, None].expand(-1, 3, 5, -1)[..., 0])

    x = torch.randn(2, 3, 8, 4)
    with torch.inference_mode():
        expected = One()(x)
        torch.testing.assert_close(fold(One(), (8, 4))(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "bad", ["a.jpg", np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), None, b"x"]
)
def test_other_values_than_images_are_refused(bad, weights):
    with pytest.raises(InputError):
        reid.Extractor(weights)([bad])
    with pytest.raises(InputError, match="list"):
        reid.Extractor(weights)("a.jpg")


@pytest.mark.parametrize(
    "bad", [{"precision": "fp64"}, {"batch_size": 0}, {"batch_size": 1.5}, {"device": "gpu"}, {"device": "meta0"}]
)
def test_extractor_arguments(bad, weights, images):
    with pytest.raises(InputError):
        reid.Extractor(weights, **bad)
    assert reid.Extractor(weights)(path for path in images[:2]).shape == (2, 768)
