"""Named defaults: the recipe of each method, and profiles that change it.

A configuration is made in this order: defaults of the dataclass, recipe of --model, --profile,
flags. Sources of the recipes: RRID's paper; layumi's Person_reID_baseline_pytorch (baseline,
pcb); PaddleClas' strong baseline; FastReID (sbs, arXiv 2006.02631); MGN's paper (arXiv
1804.01438), with FastReID's settings where the paper gives none.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from reid.config import Config, check_known
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
    # FastReID's configuration for Market-1501, without AutoAugment. Its 2,000 steps of warm-up and 1,000 with a frozen
    # backbone are 10 and 5 epochs. Its warm-up starts at 10 % of the rate and its cosine ends at 0.2 %, ours at 0
    "sbs": {
        "backbone": "resnet50_ibn_a",
        "stripes": (),
        "batch_sample": 16,
        "visits": 1,
        "crop_padding": 10,
        "erasing_area": 0.4,
        "erasing_fill": "mean",
        "margin": 0.0,
        "soft_margin": True,
        "ce_weight": 1.0,
        "smoothing": 0.1,
        "optimizer": "adam",
        "lr": 3.5e-4,
        "base_lr": 3.5e-4,
        "epochs": 60,
        "schedule": "cosine",
        "flat_epochs": 30,
        "warmup_epochs": 10,
        "freeze_epochs": 5,
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
    # better than the paper's recipe with the same number of images: docs/results.md
    "best": {"model": "rrid", "stripes": (6,), "schedule": "cosine"},
    # the behaviour of the published code with its flaws: docs/differences.md
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
    # the first two configurations of PaddleClas; the third is the recipe of strong_baseline
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
        "freeze_epochs": 0,  # random weights must be trained
        "steps_per_log": 20,
    },
}
# learning rate of heads and backbone of the demo, which has no ImageNet weights
FROM_SCRATCH = {"sgd": 0.02, "nesterov": 0.02, "adam": 1e-3}


def profile(name: str, model: str | None = None) -> Config:
    """The configuration of a named profile with the recipe of `model`.

    model None: the model of the profile, else rrid. Raises InputError for unknown names and for
    a profile that belongs to another model.
    """
    check_known("profile", name, PROFILES)
    own = PROFILES[name].get("model")
    model = model or own or "rrid"
    check_known("model", model, RECIPES)
    if own and model != own:
        raise InputError(f"--profile {name} is a recipe of --model {own}, not of {model}")
    values = {**RECIPES[model], **PROFILES[name], "profile": name, "model": model}
    if name == "demo":
        rate = FROM_SCRATCH[values.get("optimizer", "sgd")]
        values |= {"lr": rate, "base_lr": rate}
    return Config(**values)


def from_flags(given: dict[str, Any], base: Config | None = None) -> Config:
    """The configuration `base` with the given flags applied.

    base None: the named profile with the recipe of the named model. Raises InputError.
    """
    if base is None:
        base = profile(given.get("profile", "paper"), given.get("model"))
        if "epochs" in given and "max_steps" not in given:
            base = replace(base, max_steps=0)  # of a profile; it would overrule the epochs
    return replace(base, **given)


def run_name(config: Config) -> str:
    """The fields that differ from profile and recipe, for example "stripes-6_relation-none".

    The name of the profile if none differs. A model other than the profile's comes first.
    """
    if config.name:
        return config.name
    changed = config.changes(profile(config.profile, config.model))
    changed.pop("dataset_type", None)  # already in the folder above the run
    for name in ("pretrained", "teacher"):
        if name in changed:
            changed[name] = Path(changed[name]).stem
    words = [f"{k}-{as_word(v)}" for k, v in changed.items()]
    if config.model != PROFILES[config.profile].get("model", "rrid"):
        words.insert(0, config.model)
    return "_".join(words) or config.profile


def as_word(value: Any) -> str:
    word = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return word.replace(":", "-")  # Windows has no file names with a colon
