"""The maxima of horizontal bands of a map, with a fast backward pass."""

import torch
from torch import Tensor
from torch.nn import functional as F


class BandMaxima(torch.autograd.Function):
    """max_pool2d over whole bands, with a gradient in the memory layout of the map.

    As in torch, the gradient goes to the first maximum. Torch's own backward pass copies a
    channels-last map twice on the CPU, which took most of the backward time of the heads.
    """

    @staticmethod
    def forward(ctx, x: Tensor, bands: int) -> Tensor:
        cell = (x.shape[2] // bands, x.shape[3])
        maxima, places = F.max_pool2d(x, cell, return_indices=True)  # (N, C, bands, 1), in h * w
        ctx.save_for_backward(places)
        ctx.shape = x.shape
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return maxima.squeeze(3).transpose(1, 2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        n, c, h, w = ctx.shape
        places = ctx.saved_tensors[0].squeeze(3)  # (N, C, bands)
        if ctx.channels_last:
            flat = gradient.new_zeros(n, h * w, c)
            flat.scatter_(1, places.transpose(1, 2), gradient)
            return flat.view(n, h, w, c).permute(0, 3, 1, 2), None
        flat = gradient.new_zeros(n, c, h * w)
        flat.scatter_(2, places, gradient.transpose(1, 2))
        return flat.view(n, c, h, w), None


def band_maxima(x: Tensor, bands: int) -> Tensor:
    """Map (N, C, h, w) -> (N, bands, C): the maximum of each of `bands` equal horizontal bands.

    h must be a multiple of `bands`.
    """
    if x.requires_grad:
        return BandMaxima.apply(x, bands)
    cell = (x.shape[2] // bands, x.shape[3])
    return F.max_pool2d(x, cell).squeeze(3).transpose(1, 2)  # exporters support this operation
