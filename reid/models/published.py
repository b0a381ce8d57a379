"""The layout of the published model: its 723 tensor names and ours. See docs/differences.md."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from reid.errors import InputError

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def is_published(state: dict[str, Tensor]) -> bool:
    return any(re.match(r"(module\.)?local_\d+_conv_list\.", k) for k in state)


def published_names(stripes: Sequence[int]) -> dict[str, list[str]]:
    """{our layer: the published name of each of its slots, in our order}."""

    def slots(part: str, whole: str) -> list[str]:
        parts = [part.format(n, i) for n in stripes for i in range(n)]
        return parts + [whole.format(n, 0) for n in stripes]

    return {
        "E_p": slots("local_{}_conv_list.{}", "global_{}_max_conv_list.{}"),
        "E_r": slots("rest_{}_conv_list.{}", "global_{}_rest_conv_list.{}"),
        "R": slots("relation_{}_conv_list.{}", "global_{}_pooling_conv_list.{}"),
        "classifiers": slots("fc_local_rest_{}_list.{}", "fc_global_{}_list.{}")  # on q
        + slots("fc_local_{}_list.{}", "fc_global_max_{}_list.{}")  # on a
        + slots("fc_rest_{}_list.{}", "fc_global_rest_{}_list.{}"),  # on b
    }


def from_published(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[int, ...], int]:
    """Published state dict, with or without `module.` -> (our state dict, stripes, classes).

    0 classes when the state has no classifiers. Raises InputError for missing and for unknown
    tensors.
    """
    left = {k.removeprefix("module."): v for k, v in state.items()}
    counts = {int(m[1]) for k in left if (m := re.match(r"local_(\d+)_conv_list\.", k))}
    stripes = tuple(sorted(counts, reverse=True))
    has_classifiers = any(k.startswith("fc_") for k in left)
    ours = {k: left.pop(k) for k in list(left) if k.startswith("base.")}

    def take(names: list[str], suffix: str) -> list[Tensor]:
        missing = [n + suffix for n in names if n + suffix not in left]
        if missing:
            raise InputError(
                f"{len(missing)} tensors of the published layout with stripes {stripes} are "
                f"missing, the first: {missing[0]}; the file is not a complete RRID model"
            )
        return [left.pop(n + suffix) for n in names]

    layers = published_names(stripes)
    classifiers = layers.pop("classifiers")
    for layer, names in layers.items():
        ours[f"{layer}.weight"] = torch.stack([w.flatten(1) for w in take(names, ".0.weight")])
        ours[f"{layer}.bias"] = torch.stack(take(names, ".0.bias"))
        for entry in BATCH_NORM:
            ours[f"{layer}.norm.{entry}"] = torch.cat(take(names, f".1.{entry}"))
        for name in names:  # torch has this counter since 0.4.1; no result depends on it
            left.pop(f"{name}.1.num_batches_tracked", None)
        ours[f"{layer}.norm.num_batches_tracked"] = torch.tensor(0)
    classes = 0
    if has_classifiers:
        ours["classifiers.weight"] = torch.stack(take(classifiers, ".weight"))
        ours["classifiers.bias"] = torch.stack(take(classifiers, ".bias"))
        classes = ours["classifiers.bias"].shape[1]
    if left:
        raise InputError(f"{len(left)} tensors are not part of the published layout, the first: {next(iter(left))}")
    return ours, stripes, classes
