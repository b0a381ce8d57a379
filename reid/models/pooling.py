"""The maxima of horizontal bands of a map, with a gradient that writes the map once."""

import torch
from torch import Tensor
from torch.nn import functional as F


class BandMaxima(torch.autograd.Function):
    """max_pool2d over whole bands. Its gradient goes to the first maximum, as torch's does, but in the layout of the
    map: torch's own copies a channels-last map twice on the CPU, which took most of the heads' backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, bands: int) -> Tensor:
        cell = (x.shape[2] // bands, x.shape[3])
        maxima, places = F.max_pool2d(x, cell, return_indices=True)  # (N, C, bands, 1), places within h x w
        ctx.save_for_backward(places)
        ctx.shape, ctx.last = x.shape, x.is_contiguous(memory_format=torch.channels_last)
        return maxima.squeeze(3).transpose(1, 2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        n, c, h, w = ctx.shape
        places = ctx.saved_tensors[0].squeeze(3)  # (N, C, bands)
        if ctx.last:
            spread = gradient.new_zeros(n, h * w, c).scatter_(1, places.transpose(1, 2), gradient)
            return spread.view(n, h, w, c).permute(0, 3, 1, 2), None
        return gradient.new_zeros(n, c, h * w).scatter_(2, places, gradient.transpose(1, 2)).view(n, c, h, w), None


def band_maxima(x: Tensor, bands: int) -> Tensor:
    """Map (N, C, h, w) -> (N, bands, C): the maximum of each of `bands` equal horizontal bands; h is their multiple."""
    if x.requires_grad:
        return BandMaxima.apply(x, bands)
    return F.max_pool2d(x, (x.shape[2] // bands, x.shape[3])).squeeze(3).transpose(1, 2)  # what exporters know
