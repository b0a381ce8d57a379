"""IBN-a: Pan et al., Two at Once, ECCV 2018 (arXiv 1807.09441).

In the blocks of a ResNet's first three stages, the first norm is an instance norm for half of the
channels and a batch norm for the others.
"""

import torch
from torch import Tensor, nn


class HalfInstanceNorm(nn.Module):
    """Map (N, C, h, w) -> (N, C, h, w). The names of its tensors are those of IBN-Net's weights."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = channels // 2
        self.IN = nn.InstanceNorm2d(self.first, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.first)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.IN(x[:, : self.first]), self.BN(x[:, self.first :])], 1)


def add_instance_norms(network: nn.Module) -> None:
    """Turns torchvision's untrained ResNet into its IBN-a form."""
    for stage in ("layer1", "layer2", "layer3"):
        for block in network.get_submodule(stage).children():
            block.bn1 = HalfInstanceNorm(block.bn1.num_features)  # type: ignore[union-attr, arg-type]
