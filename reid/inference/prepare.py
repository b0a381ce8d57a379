"""Prepares a model for inference: folded batch norms, channels last, reduced precision."""

import copy
import logging

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reid.models.layers import SlotLayer

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # relative to the largest output; rounding errors are much smaller, wrong folds much larger


def prepare(model: nn.Module, size: tuple[int, int], precision: str = "fp32") -> nn.Module:
    """A copy of the model, on its device, with folded batch norms, channels last, and convolutions in `precision`."""
    model = fold(model.eval(), size).to(memory_format=torch.channels_last)
    base = getattr(model, "base", None)
    if precision == "bf16" and base is not None:  # once, instead of in every forward; heads stay float32
        for module in base.modules():
            if type(module) is nn.Conv2d:  # a subclass may set its own precision
                module.to(torch.bfloat16)
    return model


def fold(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """A copy of the model, on its device, with each batch norm folded into the convolution or SlotLayer before it.

    In eval mode the outputs are equal except for rounding. This is checked on one image of noise; if they differ, a
    warning is logged and the model is returned as it is.
    """
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(next(model.parameters()).device)
    folded = copy.deepcopy(model)  # also without torch.compile
    with torch.inference_mode():
        expected = folded(noise)
    for convolution, norm in foldable(folded, noise):
        before, after = folded.get_submodule(convolution), folded.get_submodule(norm)
        assert isinstance(before, nn.Conv2d) and isinstance(after, _BatchNorm)
        fused = fuse_conv_bn_eval(before, after)
        folded.set_submodule(convolution, fused)
        folded.set_submodule(norm, nn.Identity())
    for layer in folded.modules():
        if isinstance(layer, SlotLayer):
            fold_slots(layer)
    with torch.inference_mode():
        change = (folded(noise) - expected).abs().max()
    if change > TOLERANCE * expected.abs().max():
        logger.warning("batch norms cannot be folded into this model; it runs unfolded, and slower")
        folded = copy.deepcopy(model)
    return folded.requires_grad_(False)


def foldable(model: nn.Module, noise: Tensor) -> list[tuple[str, str]]:
    """Names of the convolutions and batch norms that can be folded.

    The model runs once with hooks: a pair matches when the input of the batch norm is the tensor object that the
    convolution returned. Modules that are called more than once are left out.
    """
    made: dict[int, nn.Module] = {}  # id of a tensor -> the convolution that returned it
    kept: list[Tensor] = []  # kept alive, so that ids stay unique
    calls: list[nn.Module] = []
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        calls.append(module)
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module
            kept.append(output)
        elif id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])], module))

    names = {module: name for name, module in model.named_modules()}
    hooks = [m.register_forward_hook(note) for m in names if isinstance(m, (nn.Conv2d, _BatchNorm))]
    with torch.inference_mode():
        model(noise)
    for hook in hooks:
        hook.remove()
    return [(names[c], names[n]) for c, n in pairs if calls.count(c) == calls.count(n) == 1]


def fold_slots(layer: SlotLayer) -> None:
    """Folds a SlotLayer's batch norm into its weight and bias."""
    norm = layer.norm
    assert isinstance(norm, _BatchNorm) and norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    scale, shift = scale.view_as(layer.bias), shift.view_as(layer.bias)
    layer.weight.data *= scale[:, :, None]
    layer.bias.data = layer.bias.data * scale + shift
    layer.norm = nn.Identity()
