"""Features files of other systems: NumPy's .npz and layumi's .mat."""

from pathlib import Path

import numpy as np


def read_npz(path: Path):
    """({side: (features, pids, camids or None, names or None)}, {})."""
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as f:
        sides = {}
        for side in ("query", "gallery"):
            camids, names = f.get(f"{side}_camids"), f.get(f"{side}_names")
            names = None if names is None else names.astype(str).tolist()
            sides[side] = (f[f"{side}_features"], f[f"{side}_pids"], camids, names)
    return sides, {}


def read_mat(path: Path):
    """As read_npz; without names. Raises KeyError for a missing entry, ValueError for a damaged file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        f = loadmat(path)
    except MatReadError as e:
        raise ValueError(str(e)) from e
    sides = {}
    for side in ("query", "gallery"):
        for key in (f"{side}_f", f"{side}_label", f"{side}_cam"):
            if key not in f:
                raise KeyError(f"{key} is not in the file")
        sides[side] = (f[f"{side}_f"], f[f"{side}_label"].ravel(), f[f"{side}_cam"].ravel(), None)
    return sides, {}
