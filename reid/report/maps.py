"""Where the backbone looks: the energy of its map over chosen images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from reid.data.loader import decode
from reid.data.transforms import normalise
from reid.errors import InputError, MissingInput
from reid.models.weights import read_weights


def activation_maps(
    weights: Path, names: Sequence[str], paths: dict[str, str]
) -> tuple[list[tuple[str, np.ndarray, np.ndarray]], np.ndarray]:
    """[(name, pixels (H, W, 3) uint8, energy (h, w): the length of the map's vector at each place)], and the model's
    bands (S, 2). `names` are file names in `paths` or paths. Raises MissingInput for an image that is not there,
    InputError for a model without one backbone map."""
    files = {name: paths.get(name, name) for name in names}
    for name, path in files.items():
        if not Path(path).is_file():
            raise MissingInput(f"--maps {name}: neither a query or gallery image nor a file")
    model, config = read_weights(weights)
    if not hasattr(model, "base") or not hasattr(model, "bands"):
        raise InputError(f"--maps: the model of {weights} has no single backbone map to show; leave --maps out")
    pixels = np.stack([decode(path, config.h, config.w) for path in files.values()])
    with torch.inference_mode():
        maps = model.base(normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
        last = maps[-1] if isinstance(maps, list) else maps  # of several branches the one with the finest stripes
        energy = last.norm(dim=1).numpy()
    return list(zip(files, pixels, energy)), np.array(model.bands)
