"""ImageNet networks without pooling and classifier, at output stride 16 (or 32)."""

from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url
from torchvision import models as torchvision_models

from reid.errors import InputError, MissingInput
from reid.models.ibn import add_instance_norms
from reid.models.layers import named
from reid.models.timm_map import TimmMap, build_timm, timm_file
from reid.variants import BACKBONES, TIMM, check_choice

PRETRAINED = Path("pretrained")
IBN = "_ibn_a"  # end of the names of IBN-Net's ResNets
IBN_URL = "https://github.com/XingangPan/IBN-Net/releases/download/v1.0/"
IBN_FILES = {
    "resnet18_ibn_a": "resnet18_ibn_a-2f571257.pth",
    "resnet34_ibn_a": "resnet34_ibn_a-94bc1577.pth",
    "resnet50_ibn_a": "resnet50_ibn_a-d9d0bb7b.pth",
    "resnet101_ibn_a": "resnet101_ibn_a-59ea0ac6.pth",
}
CLASSIFIERS = ("fc.", "classifier.")  # torchvision's names of the layers after the map


def build_backbone(name: str, last_stride: int = 1) -> "ResNetMap | MobileNetMap | TimmMap":
    """An untrained network: images (N, 3, H, W) -> map (N, C, H/16, W/16).

    Its attribute `channels` is C. The last stage keeps the resolution; with last_stride 2 the
    map is torchvision's, half as high and wide. State names are torchvision's, for timm:NAME timm's. Raises
    InputError for an unknown name or stride.
    """
    check_choice("backbone", name)
    check_choice("last_stride", last_stride)
    if name.startswith(TIMM):
        return build_timm(name.removeprefix(TIMM), last_stride)
    network = getattr(torchvision_models, name.removesuffix(IBN))(weights=None)
    if name.endswith(IBN):
        add_instance_norms(network)
    if name.startswith("resnet"):
        return ResNetMap(network, last_stride)
    return MobileNetMap(network, last_stride)


class ResNetMap(nn.Module):
    """torchvision's ResNet up to its last stage."""

    def __init__(self, network: torchvision_models.ResNet, last_stride: int):
        super().__init__()
        if last_stride == 1:
            first = network.layer4[0]
            for convolution in (first.conv1, first.conv2, first.downsample[0]):
                convolution.stride = (1, 1)
        for name, part in list(network.named_children())[:-2]:  # all but avgpool and fc
            self.add_module(name, part)
        self.channels: int = network.fc.in_features

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x

    def cut(self) -> tuple[nn.Sequential, nn.Sequential]:
        """The network up to the first block of stage 3 (stride 16), and the rest. Names are kept."""
        parts = dict(self.named_children())
        (name, first), *others = parts.pop("layer3").named_children()
        layer4 = parts.pop("layer4")
        trunk = named(*parts.items(), ("layer3", named((name, first))))
        return trunk, named(("layer3", named(*others)), ("layer4", layer4))


class Depthwise(nn.Conv2d):
    """A depthwise convolution that runs in float32 on the CPU.

    The CPU's bf16 backward pass is slow: with it a training step of MobileNetV2 takes 1.4
    times as long.
    """

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
            _, last = self.reductions()[-1]
            last.stride = (1, 1)
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.__class__ = Depthwise  # keeps weights and names, changes forward
        self.channels: int = network.classifier[1].in_features

    def reductions(self) -> list[tuple[int, nn.Conv2d]]:
        """(number of its block, convolution) of each convolution of stride 2."""
        return [
            (i, module)
            for i, block in enumerate(self.features)
            for module in block.modules()
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2)
        ]

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)

    def cut(self) -> tuple[nn.Sequential, nn.Sequential]:
        """The network up to the block that reaches stride 16, and the rest. Names are kept."""
        blocks = list(self.features.named_children())
        end = self.reductions()[3][0] + 1
        return named(("features", named(*blocks[:end]))), named(("features", named(*blocks[end:])))


def imagenet_file(name: str, folder: Path = PRETRAINED) -> Path:
    """The ImageNet weights of a backbone: a file in `folder`, else the published file, downloaded there.

    A file belongs to a backbone when its name begins with the backbone's, for timm:NAME with
    timm-NAME. Raises InputError when several do, MissingInput when none does and the download fails.
    """
    stem = name.replace(TIMM, "timm-") + ("." if name.startswith(TIMM) else "")
    longer = tuple(other for other in BACKBONES if other.startswith(name) and other != name)
    found = [p for p in folder.glob(f"{stem}*") if p.suffix in (".pth", ".safetensors") and p.is_file()]
    files = sorted(p for p in found if not p.name.startswith(longer))
    if len(files) > 1:
        raise InputError(
            f"{folder}/ has several weights files for {name}: {', '.join(p.name for p in files)}; "
            "keep one, or name it with --pretrained FILE"
        )
    if files:
        return files[0]
    if name.startswith(TIMM):
        return timm_file(name.removeprefix(TIMM), folder)
    url = IBN_URL + IBN_FILES[name] if name in IBN_FILES else imagenet_url(name)
    try:
        load_state_dict_from_url(url, model_dir=str(folder), map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as e:
        raise MissingInput(
            f"no ImageNet weights for {name}: {folder}/{name}*.pth does not exist and downloading "
            f"{url} failed ({e}). Put that file into {folder}/, or start from random weights "
            "with --pretrained none"
        ) from e
    return folder / url.rsplit("/", 1)[1]


def imagenet_url(name: str) -> str:
    return torchvision_models.get_model_weights(name)["IMAGENET1K_V1"].url
