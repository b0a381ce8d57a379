"""Where the backbone looks: the energy of its feature map over chosen images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reid.data.loader import decode, fitted
from reid.data.transforms import normalise
from reid.errors import InputError, MissingInput
from reid.models.weights import read_weights

SHOWN = (256, 512)  # largest height and width of an image in the figure


def energy_maps(
    weights: Path, names: Sequence[str], paths: dict[str, str]
) -> tuple[list[tuple[str, np.ndarray, np.ndarray]], np.ndarray]:
    """The energy of the feature map, its vector's length at each place, over the named images.

    names: keys of `paths` (name -> file) or files. Returns [(name, image (H, W, 3) uint8 in its own aspect ratio,
    energy (h, w))] and the model's bands (S, 2). Raises MissingInput for a missing image, InputError for a model
    without a backbone map.
    """
    files = {name: paths.get(name, name) for name in names}
    for name, path in files.items():
        if not Path(path).is_file():
            raise MissingInput(f"--maps {name} is neither a query or gallery image nor a file")
    model, config = read_weights(weights)
    base = getattr(model, "base", None)
    if not isinstance(base, nn.Module) or not hasattr(model, "bands"):
        raise InputError(f"the model of {weights} has no single backbone map; leave --maps out")
    images = np.stack([decode(path, config.h, config.w) for path in files.values()])
    with torch.inference_mode():
        found = base(normalise(torch.from_numpy(images).permute(0, 3, 1, 2)))
        finest = found[-1] if isinstance(found, list) else found  # the last branch has the most stripes
        energy = finest.norm(dim=1).numpy()
    pictures = [fitted(path, *SHOWN) for path in files.values()]
    return list(zip(files, pictures, energy)), np.array(model.bands)
