"""A loss or gradient that is not finite leaves the weights alone."""

import pytest
import torch
from conftest import same

from reid.config import Config
from reid.device import Hardware
from reid.errors import CheckFailed
from reid.models.rrid import RRID
from reid.training.step import TrainStep


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("where", ["image", "gradient"])
def test_not_finite_leaves_the_weights_alone(where, fused, monkeypatch):
    """The first bad step and all later ones change nothing, and its terms are shown. Also without fused optimisers."""
    monkeypatch.setattr(Hardware, "fused", fused)
    torch.manual_seed(0)
    model = RRID(2, (2,), "resnet18", dim=8)
    step = TrainStep(model, Config(backbone="resnet18", stripes=(2,)), torch.device("cpu"))
    images, labels = torch.randn(4, 3, 64, 32), torch.tensor([0, 0, 1, 1])
    step(images, labels, (1e-3, 1e-2))
    step.check_finite(1)
    before = {k: v.clone() for k, v in model.named_parameters()}
    if where == "image":
        bad = images.clone()
        bad[0, 0, 0, 0] = torch.nan
        terms = step(bad, labels, (1e-3, 1e-2))
        assert torch.isnan(terms["loss"])
    else:
        hook = model.E_p.weight.register_hook(lambda g: g * torch.inf)
        step(images, labels, (1e-3, 1e-2))
        hook.remove()
    step(images, labels, (1e-3, 1e-2))
    assert same(dict(model.named_parameters()), before)
    with pytest.raises(CheckFailed, match=r"triplet .*cross_entropy .*gradient (nan|inf)"):
        step.check_finite(3)
