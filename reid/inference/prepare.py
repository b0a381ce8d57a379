"""A model changed for inference only: batch norms folded, channels last, reduced precision."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reid.models.layers import SlotLayer


def prepare(model: nn.Module, size: tuple[int, int], precision: str = "fp32", compile: bool = False) -> nn.Module:
    """The model, on the CPU, changed for inference only: batch norms folded, channels last, convolutions in
    `precision`."""
    model = fold(model.eval(), size).to(memory_format=torch.channels_last)
    base = getattr(model, "base", None)
    if precision == "bf16" and base is not None:  # once, instead of in every forward; heads stay float32
        for module in base.modules():
            if type(module) is nn.Conv2d:  # a subclass may have a precision of its own
                module.to(torch.bfloat16)
    if compile:
        from torch._inductor import config as inductor

        inductor.freezing = True  # packs weights, fuses ReLUs; compile(options=...) does not reach it
        (model if base is None else base).compile()
    return model


def fold(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The model, on the CPU, with each batch norm folded into the convolution or SlotLayer that feeds it; in eval mode
    the outputs are equal but for rounding.

    What feeds what is seen by running it on one image of noise: a batch norm's input is the very tensor that a
    convolution gave. Those used more than once are left; the outputs are compared afterwards.
    """
    names = {module: name for name, module in model.named_modules()}
    made: dict[int, nn.Module] = {}  # id of a tensor -> the convolution that gave it
    kept: list[Tensor] = []  # so that no id is used twice
    calls: list[nn.Module] = []
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        calls.append(module)
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module
            kept.append(output)
        elif id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])], module))

    seen = [m for m in names if isinstance(m, (nn.Conv2d, _BatchNorm))]
    hooks = [m.register_forward_hook(note) for m in seen]
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(noise)
    for hook in hooks:
        hook.remove()

    def replace(module: nn.Module, by: nn.Module) -> None:
        parent, _, name = names[module].rpartition(".")
        setattr(model.get_submodule(parent), name, by)

    for convolution, norm in pairs:
        if calls.count(convolution) == calls.count(norm) == 1:
            replace(convolution, fuse_conv_bn_eval(convolution, norm))
            replace(norm, nn.Identity())
    for layer in [m for m in names if isinstance(m, SlotLayer)]:
        scale = layer.norm.weight * (layer.norm.running_var + layer.norm.eps).rsqrt()
        shift = layer.norm.bias - layer.norm.running_mean * scale
        layer.weight.data *= scale.view_as(layer.bias)[:, :, None]
        layer.bias.data = layer.bias.data * scale.view_as(layer.bias) + shift.view_as(layer.bias)
        layer.norm = nn.Identity()
    with torch.inference_mode():
        change = (model(noise) - before).abs().max()
    assert not change > 1e-3 * before.abs().max(), "a convolution's output goes elsewhere than into its batch norm"
    return model.requires_grad_(False)
