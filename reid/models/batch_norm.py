"""Batch norms with statistics over all processes or over parts of a batch. State names are torch's."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from reid.processes import SumOverProcesses, together


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with batch statistics over all processes: torch's layers on CUDA, ours on the CPU."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return replace_forward(model, GlobalBatchNorm)


def replace_forward(model: nn.Module, kind: type[_BatchNorm], **attributes) -> nn.Module:
    """Gives each batch norm the forward of `kind`. Tensors and names are kept."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = kind
            vars(module).update(attributes)
    return model


class GlobalBatchNorm(_BatchNorm):
    """Statistics over the images of all processes. Input (N, C) or (N, C, H, W)."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def _check_input_dim(self, x: Tensor) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and together()):
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        y = x.to(self.weight.dtype)
        own_count = torch.tensor(float(x.numel() // x.shape[1]), dtype=torch.double)
        count = SumOverProcesses.apply(own_count)
        mean = SumOverProcesses.apply(y.sum(dims)) / count.to(y.dtype)
        centred = y - mean.view(shape)
        variance = SumOverProcesses.apply(centred.square().sum(dims)) / count.to(y.dtype)
        with torch.no_grad():
            unbiased = variance * (count / (count - 1)).to(y.dtype)
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


class GhostBatchNorm(_BatchNorm):
    """Statistics over each group of `ghost` images of the batch.

    Only the first group updates the running statistics, as on the first of several GPUs under
    DataParallel.
    """

    ghost: int

    def _check_input_dim(self, x: Tensor) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        first, *others = x.split(self.ghost)
        parts = [super().forward(first)]
        for group in others:
            parts.append(F.batch_norm(group, None, None, self.weight, self.bias, True, 0.0, self.eps))
        return torch.cat(parts)
