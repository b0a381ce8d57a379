"""Named defaults: the recipe that each method brings, and profiles on top of it.

A configuration is made in this order: the dataclass's defaults, the recipe of its --model, its --profile, the flags.
Recipes: RRID's paper; layumi's Person_reID_baseline_pytorch (baseline, pcb); PaddleClas' strong baseline; MGN's
paper (arXiv 1804.01438) with FastReID's choices where it is silent.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from reid.config import Config, closest
from reid.errors import InputError

RECIPES: dict[str, dict[str, Any]] = {
    "rrid": {},
    "baseline": {
        "h": 256,
        "last_stride": 2,
        "stripes": (),
        "sampler": "random",
        "batch_size": 32,
        "crop_padding": 10,
        "erasing_probability": 0.0,
        "triplet_weight": 0.0,
        "ce_weight": 1.0,
        "optimizer": "nesterov",
        "lr": 0.05,
        "base_lr": 0.005,
        "epochs": 60,
        "decay_schedule": (40,),
    },
    "strong_baseline": {
        "h": 256,
        "stripes": (),
        "neck": "bnneck",
        "visits": 1,
        "crop_padding": 10,
        "erasing_area": 0.4,
        "erasing_fill": "mean",
        "margin": 0.3,
        "ce_weight": 1.0,
        "center_weight": 5e-4,
        "smoothing": 0.1,
        "optimizer": "adam",
        "lr": 3.5e-4,
        "base_lr": 3.5e-4,
        "epochs": 120,
        "decay_schedule": (30, 60),
        "warmup_epochs": 10,
    },
    "pcb": {
        "w": 192,
        "stripes": (6,),
        "sampler": "random",
        "erasing_probability": 0.0,
        "triplet_weight": 0.0,
        "ce_weight": 1.0,
        "lr": 0.1,
        "base_lr": 0.01,
        "epochs": 60,
        "decay_schedule": (40,),
    },
    "mgn": {"stripes": (2, 3), "visits": 1, "erasing_probability": 0.0, "ce_weight": 1.0, "base_lr": 0.01},
}

PROFILES: dict[str, dict[str, Any]] = {
    "paper": {},
    # what runs at equal images showed to be better than the paper's: docs/results.md, each change a row
    "best": {"model": "rrid", "stripes": (6,), "schedule": "cosine"},
    # the published code's behaviour, flaws included: docs/differences.md
    "original": {
        "model": "rrid",
        "sampler": "anchor",
        "erasing": "published",
        "train_set": "train",
        "eval_every": 0,
        "classes": 751,
        "ghost_batch": 32,
        "base_lr_from": 40,
    },
    # PaddleClas' first two configurations; its third is the recipe of strong_baseline itself
    "softmax": {
        "model": "strong_baseline",
        "last_stride": 2,
        "neck": "none",
        "erasing_probability": 0.0,
        "smoothing": 0.0,
        "center_weight": 0.0,
        "decay_schedule": (40, 70),
        "warmup_epochs": 0,
    },
    "softmax_triplet": {"model": "strong_baseline", "center_weight": 0.0},
    "demo": {
        "dataset_type": ("demo",),
        "h": 192,
        "w": 64,
        "backbone": "mobilenet_v2",
        "pretrained": "none",
        "num_val": 12,
        "max_steps": 200,
        "warmup_steps": 20,
        "warmup_epochs": 0,
        "steps_per_log": 20,
    },
}
FROM_SCRATCH = {"sgd": 0.02, "nesterov": 0.02, "adam": 1e-3}  # both rates of the demo, which has no ImageNet weights


def profile(name: str, model: str | None = None) -> Config:
    """The configuration of a named profile, with the recipe of `model` (default: the profile's own). InputError."""
    if name not in PROFILES:
        raise InputError(f"--profile {name} is unknown; choose from {', '.join(PROFILES)}{closest(name, [*PROFILES])}")
    own = PROFILES[name].get("model")
    model = model or own or "rrid"
    if own and model != own:
        raise InputError(f"--profile {name} is a recipe of --model {own}, not of {model}")
    Config(model=model, stripes=RECIPES.get(model, {}).get("stripes", (2,)))  # or InputError: an unknown model
    values = {**RECIPES[model], **PROFILES[name], "profile": name, "model": model}
    if name == "demo":
        rate = FROM_SCRATCH[values.get("optimizer", "sgd")]
        values |= {"lr": rate, "base_lr": rate}
    return Config(**values)


def from_flags(given: dict[str, Any], base: Config | None = None) -> Config:
    """`base` (default: the named profile with the recipe of the named model) with the typed flags on top.

    Raises InputError.
    """
    return replace(base or profile(given.get("profile", "paper"), given.get("model")), **given)


def run_name(config: Config) -> str:
    """Fields that differ from profile and recipe, as 'stripes-6_relation-none'; the profile's name when none do."""
    if config.name:
        return config.name
    changed = config.changes(profile(config.profile, config.model))
    changed.pop("dataset_type", None)  # the folder above the run already says it
    if "pretrained" in changed:
        changed["pretrained"] = Path(changed["pretrained"]).stem
    words = {k: "-".join(map(str, v)) if isinstance(v, tuple) else v for k, v in changed.items()}
    parts = [] if config.model == PROFILES[config.profile].get("model", "rrid") else [config.model]
    return "_".join(parts + [f"{k}-{v}" for k, v in words.items()]) or config.profile
