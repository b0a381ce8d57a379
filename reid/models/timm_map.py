"""Any network of timm (extra [timm]) as a backbone: its last map, at output stride 16 (or 32).

State names are timm's, so a file of its weights fits without conversion.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reid.config import closest
from reid.errors import InputError, MissingInput
from reid.files import atomic_file
from reid.models.layers import named
from reid.models.tensors import save_tensors

PROBE = 64  # height and width of an image that networks of any input size take


class TimmMap(nn.Module):
    """Mixed into the class of a timm network. Attributes: `channels` of the map, `level` of timm's feature list."""

    channels: int
    level: int
    feature_info: Any
    forward_intermediates: Any

    def forward(self, x: Tensor) -> Tensor:
        wanted: dict[str, Any] = {"norm": True, "output_fmt": "NCHW", "intermediates_only": True}
        try:
            return self.forward_intermediates(x, indices=[self.level], **wanted)[0]
        except AssertionError as e:  # timm's check of image sizes
            h, w = x.shape[2:]
            raise InputError(f"the backbone does not take images of {h}x{w}: {e}; change --h and --w") from e

    def cut(self) -> tuple[nn.Module, nn.Module]:
        """The network up to its last stage, and its last stage. Names are kept.

        Raises InputError for networks of one stride only, such as most transformers.
        """
        *_, before, last = self.feature_info
        parent, _, end = last["module"].rpartition(".")
        start = before["module"].rpartition(".")[2]
        trunk, container = copy.deepcopy(self), self.get_submodule(parent)
        names = list(dict(container.named_children()))
        if len({level["reduction"] for level in self.feature_info}) == 1 or start not in names:
            raise InputError("--model mgn copies the last stage of its backbone, and this network has no stages")
        trunk.level -= 1
        prune(trunk)
        first, stop = names.index(start) + 1, names.index(end) + 1
        rest = named(*((name, container.get_submodule(name)) for name in names[first:stop]))
        return trunk, named((parent, rest)) if parent else rest


def build_timm(name: str, last_stride: int) -> TimmMap:
    """The untrained network `name`, with its last stage at stride 1 or 2.

    Transformers take any size that their patches divide, where timm has that option. Raises InputError for an
    unknown name and for a network without such a map.
    """
    network: Any = create(name, 16 * last_stride)
    if not hasattr(network, "forward_intermediates"):
        raise InputError(f"--backbone timm:{name} has no maps of features in timm; choose another network")
    for module in network.modules():  # timm dilates instead of striding; our other backbones do not
        if isinstance(module, nn.Conv2d) and max(module.dilation) > 1:
            module.dilation = (1, 1)
            if any(module.padding):
                height, width = module.kernel_size
                module.padding = ((height - 1) // 2, (width - 1) // 2)
    network.level = len(network.feature_info) - 1
    network.__class__ = type("TimmMap", (TimmMap, type(network)), {})  # keeps the names, changes forward
    prune(network)
    reduction = network.feature_info[-1]["reduction"]
    if reduction != 16 * last_stride:
        raise InputError(
            f"--backbone timm:{name} has its last map at stride {reduction}, and timm cannot change it to "
            f"{16 * last_stride}; choose another network"
        )
    network.channels = map_shape(network, network.some_size)[1]
    return network


def create(name: str, stride: int) -> Any:
    """timm's network with the output stride, or for any image size; else as it is. Raises InputError.

    Its attribute `some_size` is a size of images that it takes.
    """
    timm = import_timm()
    if not timm.is_model(name):
        raise InputError(f"--backbone timm:{name} is not a network of timm{closest(name, timm.list_models())}")
    for arguments in ({"output_stride": stride}, {"dynamic_img_size": True}):
        try:
            network = timm.create_model(name, num_classes=0, **arguments)
            network.some_size = (PROBE, PROBE)
            return network
        except (TypeError, AssertionError):  # not an argument of this network, or not with this value
            continue
        except RuntimeError as e:  # a tag of weights that do not exist, as in resnet50.none
            raise InputError(f"--backbone timm:{name}: {e}") from e
    network = timm.create_model(name, num_classes=0)
    network.some_size = network.default_cfg["input_size"][1:]
    return network


def prune(network: Any) -> None:
    """Removes what follows the map, so that no parameter is without a gradient."""
    network.prune_intermediate_layers([network.level], prune_norm=False, prune_head=True)


def map_shape(network: nn.Module, size: tuple[int, int]) -> torch.Size:
    """(1, C, h, w) of the map of an image, found without computing it. Raises InputError for a size it cannot have."""
    with torch.no_grad():
        return copy.deepcopy(network).to("meta").eval()(torch.zeros(1, 3, *size, device="meta")).shape


def import_timm() -> Any:
    try:
        import timm
    except ImportError as e:
        raise InputError('--backbone timm:NAME needs timm; pip install -e ".[timm]"') from e
    return timm


def timm_file(name: str, folder: Path) -> Path:
    """The weights of a timm network, downloaded by timm into `folder`. Raises MissingInput."""
    path = folder / f"timm-{name}.pth"
    try:
        network = import_timm().create_model(name, pretrained=True)
    except InputError:
        raise
    except Exception as e:  # the clients of its hubs raise many types
        cause = str(e).split(". ")[0]
        raise MissingInput(
            f"no weights for timm:{name}: {folder}/timm-{name}.pth (or .safetensors) does not exist and timm's "
            f"download failed ({type(e).__name__}: {cause}); put that file into {folder}/, or start from random "
            "weights with --pretrained none"
        ) from e
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        save_tensors(temporary, network.state_dict())
    return path
