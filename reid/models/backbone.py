"""ImageNet networks without pool and classifier, at output stride 16 (or 32)."""

import re
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url
from torchvision import models as torchvision_models

from reid.config import BACKBONES
from reid.errors import InputError, MissingInput
from reid.models.tensors import load_tensors

PRETRAINED = Path("pretrained")
CLASSIFIERS = ("fc.", "classifier.")  # torchvision's names for what stands behind the map


def build_backbone(name: str, last_stride: int = 1) -> nn.Module:
    """A network (N, 3, H, W) -> map (N, C, H/16, W/16), untrained; C is its attribute `channels`.

    The last stage keeps the resolution, so the map is twice as high and wide as torchvision's; with last_stride 2 it
    is torchvision's. State names are torchvision's. Raises InputError for an unknown name.
    """
    if name not in BACKBONES:
        raise InputError(f"backbone {name!r} is unknown; choose from {', '.join(BACKBONES)}")
    network = getattr(torchvision_models, name)(weights=None)
    return (ResNetMap if name.startswith("resnet") else MobileNetMap)(network, last_stride)


class ResNetMap(nn.Module):
    """torchvision's ResNet up to its last stage."""

    def __init__(self, network: torchvision_models.ResNet, last_stride: int):
        super().__init__()
        first = network.layer4[0]
        for convolution in (first.conv1, first.conv2, first.downsample[0]) if last_stride == 1 else ():
            convolution.stride = (1, 1)
        for name, part in list(network.named_children())[:-2]:  # all but avgpool and fc
            self.add_module(name, part)
        self.channels = network.fc.in_features

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x

    def cut(self) -> tuple[nn.Sequential, nn.Sequential]:
        """Up to the first block of stage 3 (at stride 16), and what follows; names stay torchvision's."""
        parts = dict(self.named_children())
        (name, first), *others = parts["layer3"].named_children()
        below = [(n, p) for n, p in parts.items() if n not in ("layer3", "layer4")]
        trunk = [*below, ("layer3", named((name, first)))]
        return named(*trunk), named(("layer3", named(*others)), ("layer4", parts["layer4"]))


def named(*modules: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


class Depthwise(nn.Conv2d):
    """A depthwise convolution that runs in float32 on the CPU, whose bf16 backward is slow: the whole training
    step of MobileNetV2 takes 1.4 times as long with it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)


class MobileNetMap(nn.Module):
    """torchvision's MobileNetV2 or EfficientNetV2 without its classifier."""

    def __init__(self, network: torchvision_models.MobileNetV2 | torchvision_models.EfficientNet, last_stride: int):
        super().__init__()
        self.features = network.features
        if last_stride == 1:
            self.reductions()[-1][1].stride = (1, 1)
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.__class__ = Depthwise  # the same weights and names, another forward
        self.channels = network.classifier[1].in_features

    def reductions(self) -> list[tuple[int, nn.Conv2d]]:
        """Convolutions of stride 2, with the number of the block they stand in."""
        return [
            (i, m)
            for i, block in enumerate(self.features)
            for m in block.modules()
            if isinstance(m, nn.Conv2d) and m.stride == (2, 2)
        ]

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)

    def cut(self) -> tuple[nn.Sequential, nn.Sequential]:
        """Up to the block that reaches stride 16, and what follows; names stay torchvision's."""
        blocks, at = list(self.features.named_children()), self.reductions()[3][0] + 1
        return named(("features", named(*blocks[:at]))), named(("features", named(*blocks[at:])))


def imagenet_file(name: str, folder: Path = PRETRAINED) -> Path:
    """The ImageNet weights of a backbone: a file in `folder`, else torchvision's, downloaded into it.

    A file counts when its name begins with the backbone's. Raises InputError when several do, MissingInput
    when there is none and the download fails.
    """
    files = sorted(p for p in folder.glob(f"{name}*.pth") if p.is_file())
    if len(files) > 1:
        raise InputError(
            f"{folder}/ holds several weights for {name}: {', '.join(p.name for p in files)}; "
            "keep one, or name it with --pretrained FILE"
        )
    if files:
        return files[0]
    url = torchvision_models.get_model_weights(name)["IMAGENET1K_V1"].url
    try:
        load_state_dict_from_url(url, model_dir=str(folder), map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as e:
        raise MissingInput(
            f"no ImageNet weights for {name}: {folder}/{name}*.pth is not there and downloading {url} failed ({e}). "
            f"Put that file into {folder}/, or start from random weights with --pretrained none"
        ) from e
    return folder / url.rsplit("/", 1)[1]


def load_pretrained(backbone: nn.Module, name: str, source: str) -> str:
    """Fills `backbone` from source ('auto', 'none' or a file) and says in a line what it did.

    Raises InputError when the file belongs to another network.
    """
    if source == "none":
        return f"{name} starts from random weights"
    path = imagenet_file(name) if source == "auto" else Path(source)
    state = {k: v for k, v in load_tensors(path).items() if not k.startswith(CLASSIFIERS)}
    own = backbone.state_dict()
    # of several branches each starts from the whole network's
    source = {k: re.sub(r"^(trunk|branches\.\d+)\.", "", k) for k in own}
    missing = [k for k, s in source.items() if s not in state and not k.endswith("num_batches_tracked")]
    fitting = {s for k, s in source.items() if s in state and state[s].shape == own[k].shape}
    wrong = [s for s in state if s not in fitting]
    if missing or wrong:
        raise InputError(
            f"{path} does not fit {name}: {len(missing)} of {len(own)} tensors missing, {len(wrong)} unknown or "
            f"of another shape (the first: {(missing + wrong)[0]}); give the file of this --backbone"
        )
    backbone.load_state_dict({k: state[s] for k, s in source.items() if s in state}, strict=False)
    return f"{name} starts from {path}"
