"""The configuration: one frozen dataclass defines the flags (flags.py) and the JSON in the run folder.

Each field belongs to a section. The sections data, model, training and evaluation affect results. Fields of
the section run do not: run names leave them out, and they may differ when a run is resumed.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from functools import partial
from typing import Any, get_args

from reid.errors import InputError
from reid.variants import CHOICES, MODELS, check_model, from_timm

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
PRECISIONS = ("fp32", "tf32", "bf16")
MOST_FPR = 0.01
ENGINES = ("auto", "torch", "onnx", "openvino", "plain")

# commands that share a flag
BOTH = ("train", "evaluate")
INFERENCE = ("extract", "gallery")
ALL = (*BOTH, *INFERENCE)


def option(section: str, default, help: str, choices: tuple = (), minimum: float = 0, scripts=("train",)) -> Any:
    """A configuration field. `minimum` applies to numbers; `scripts` are the commands that have it as a flag."""
    metadata = {"section": section, "help": help, "choices": choices, "minimum": minimum, "scripts": scripts}
    return field(default=default, metadata=metadata)


in_data = partial(option, "data")
in_model = partial(option, "model")
in_training = partial(option, "training")
in_evaluation = partial(option, "evaluation", scripts=("evaluate",))
in_run = partial(option, "run")


@dataclass(frozen=True)
class Config:
    """Every setting of a run. The defaults are the profile `paper`. Raises InputError for invalid settings."""

    profile: str = in_run("paper", "start from these named defaults (reid/profiles.py)")

    dataset_type: tuple[str, ...] = in_data(
        ("market1501",), "use these folders of --dataset_path (trained jointly, scored one by one)", scripts=BOTH
    )
    dataset_path: str = in_run("./datasets", "look for datasets in this folder", scripts=(*ALL, "export"))
    split: int = in_data(0, "use this entry of splits.json")
    train_set: str = in_data(
        "trainval", "train on all identities, or hold out --num_val of them (train)", ("trainval", "train")
    )
    num_val: int = in_data(100, "hold out this number of identities with --train_set train", minimum=1)
    h: int = in_data(384, "resize images to this height in pixels", minimum=16, scripts=BOTH)
    w: int = in_data(128, "resize images to this width in pixels", minimum=16, scripts=BOTH)
    batch_size: int = in_data(64, "set the number of images per batch", minimum=1, scripts=ALL)
    batch_sample: int = in_data(4, "set the number of images per identity in a batch (K)", minimum=1)
    sampler: str = in_data(
        "pk", "draw batches of P identities x K images, as published (anchor), or at random", ("pk", "anchor", "random")
    )
    visits: int = in_data(0, "use each image this number of times per epoch (0: K, as published; random: once)")
    crop_padding: int = in_data(0, "pad with this number of black pixels, then crop at random")
    erasing: str = in_data(
        "in_place",
        "place the erased patch where it was drawn, or as the published code does",
        ("in_place", "published"),
    )
    erasing_probability: float = in_data(0.5, "erase in this fraction of the images (published: (1 + p) / 2)")
    erasing_area: float = in_data(0.2, "erase at most this fraction of an image", minimum=0.02)
    erasing_fill: str = in_data("random", "fill the patch with this colour", ("random", "mean"))
    threads: int = in_run(0, "compute on this number of CPU threads (0: one per core)", scripts=ALL)
    num_workers: int = in_run(4, "decode images in this number of threads", scripts=ALL)
    cache: str = in_run("auto", "keep decoded training images here", ("auto", "none", "ram", "gpu"))

    model: str = in_model("rrid", "train this method with its recipe", MODELS)
    backbone: str = in_model("resnet50", "use this network, or timm:NAME (any network of timm)", CHOICES["backbone"])
    pretrained: str = in_model(
        "auto", "start from ImageNet weights (auto), from random ones (none), or from any file of trained weights"
    )
    last_stride: int = in_model(
        1, "set the stride of the last stage (baseline, strong_baseline)", CHOICES["last_stride"]
    )
    stripes: tuple[int, ...] = in_model((6, 4, 2), "cut into these numbers of stripes (rrid, pcb, mgn)", minimum=2)
    relation: str = in_model("one_vs_rest", "relate each part to the others, or do not (none)", CHOICES["relation"])
    pooling: str = in_model("gcp", "compute the feature of the whole image this way", CHOICES["pooling"])
    contrast: str = in_model("mean_of_rest", "contrast the maximum with this in GCP", CHOICES["contrast"])
    ce_on: str = in_model("all", "classify the features q, a and b, or only q", CHOICES["ce_on"])
    neck: str = in_model("none", "normalise before the classifier (strong_baseline)", CHOICES["neck"])
    # written by import, for models of FastReID
    unpadded_stem: bool = in_model(False, "pool the stem of a ResNet without padding", scripts=())
    classes: int = in_model(0, "set the number of outputs of a classifier (0: one per identity)")

    epochs: int = in_training(80, "train for this number of epochs of 4 x images / batch_size steps", minimum=1)
    max_steps: int = in_training(0, "stop after N steps and scale the schedule to them (0: use --epochs)")
    warmup_steps: int = in_training(0, "raise the learning rate linearly over N steps")
    warmup_epochs: int = in_training(0, "raise it linearly over N epochs, scaled like the schedule")
    optimizer: str = in_training(
        "sgd", "use this optimizer (nesterov: SGD with Nesterov momentum)", ("sgd", "nesterov", "adam")
    )
    lr: float = in_training(1e-2, "set the learning rate of the heads")
    base_lr: float = in_training(1e-3, "set the learning rate of the backbone")
    base_lr_from: int = in_training(1, "use --base_lr from this epoch, --lr before it (published: 40)", minimum=1)
    decay_schedule: tuple[int, ...] = in_training((40, 60), "drop the rate at the start of these epochs", minimum=1)
    staircase_decay_multiply_factor: float = in_training(0.1, "multiply the rate by this at each drop")
    momentum: float = in_training(0.9, "set the momentum of SGD")
    weight_decay: float = in_training(5e-4, "set the weight decay (L2 penalty)")
    schedule: str = in_training("staircase", "change the learning rate this way", ("staircase", "cosine"))
    flat_epochs: int = in_training(0, "keep the rate for N epochs before the cosine, scaled like the schedule")
    freeze_epochs: int = in_training(0, "keep the backbone as it is for N epochs, scaled like the schedule")
    margin: float = in_training(1.2, "set the margin of the triplet loss")
    soft_margin: bool = in_training(False, "use softplus instead of max(0, .) in the triplet loss")
    triplet_weight: float = in_training(1.0, "weight the sum of the triplet losses")
    ce_weight: float = in_training(2.0, "weight the sum of the cross entropies")
    center_weight: float = in_training(0.0, "weight the center loss")
    teacher: str = in_training("", "also learn from the features and logits of this weights file")
    teacher_weight: float = in_training(1.0, "weight the losses that compare with --teacher")
    smoothing: float = in_training(0.0, "smooth the labels of the cross entropy")
    precision: str = in_training(
        "auto",
        "run the backbone in this precision (auto: bf16 where the GPU supports it, else fp32; int8: not for training)",
        ("auto", *PRECISIONS, "int8"),
        scripts=ALL,
    )
    ghost_batch: int = in_training(0, "compute batch-norm statistics over N images (0: the whole batch)")
    compile: bool = in_training(False, "compile the backbone with torch.compile", scripts=("train",))
    seed: int = in_training(0, "seed weights, batches and augmentation")
    eval_every: int = in_training(5, "validate every N epochs with --train_set train (0: never, keep the last weights)")
    # written by a finished run that is trained longer
    continued_from: tuple[int, ...] = in_training((), "steps at which the run was finished before", scripts=())
    schedule_from: int = in_training(0, "step at which the schedule was restarted", scripts=())

    ap: str = in_evaluation("step", "compute the average precision this way", ("step", "trapezoid"))
    cmc: str = in_evaluation(
        "market1501", "use this definition of CMC", ("market1501", "allshots", "cuhk03", "vehicleid")
    )
    engine: str = in_evaluation(
        "auto",
        "run the model with this engine (auto: from 2,000 images on the fastest on this machine, else torch)",
        ENGINES,
        scripts=("evaluate", *INFERENCE),
    )
    calibration: tuple[str, ...] = in_evaluation(
        (),
        "calibrate int8 on these folders, patterns or lists of images (default: those of the training)",
        scripts=("evaluate", *INFERENCE, "export"),
    )
    max_loss: float = in_evaluation(
        0.5, "refuse int8 if it loses more mAP, in percentage points", scripts=("evaluate", *INFERENCE, "export")
    )
    metric: str = in_evaluation("euclidean", "rank by this distance", ("euclidean", "cosine"))
    rerank: bool = in_evaluation(False, "re-rank with k-reciprocal neighbours")
    query_expansion: int = in_evaluation(0, "replace each query by its mean with its N nearest gallery images")
    no_cameras: bool = in_evaluation(False, "do not exclude gallery images of the same identity and camera")
    multi_query: str = in_evaluation(
        "none",
        "pool the images of an identity and camera into one query (Market-1501: those of gt_bbox, if prepared)",
        ("none", "mean", "max"),
    )
    tracks: bool = in_evaluation(False, "rank the gallery's tracks, each at the distance of its nearest image (VeRi)")
    camera_pairs: bool = in_evaluation(False, "print mAP and Rank-1 for each pair of cameras")
    fpr: float = in_evaluation(1e-3, "recommend a threshold for this false-accept rate, at most 0.01")
    occlude: tuple[int, ...] = in_evaluation(
        (0,), "cover this sixth of each query (1 top, 6 bottom); scores several one after the other", tuple(range(7))
    )

    device: str = in_run("auto", "run on this device (auto: a GPU if there is one)", DEVICES, scripts=ALL)
    gpus: tuple[int, ...] = in_run(
        (), "run on these GPU ids, one process per id (default: the first GPU, or the CPU)", scripts=ALL
    )
    exp_dir: str = in_run("./logs", "write runs to EXP_DIR/dataset/name", scripts=BOTH)
    name: str = in_run("", "name the run (default: the fields that differ from the profile)")
    resume: str = in_run(
        "",
        "continue the newest unfinished run of this name, or the given folder; with a greater --epochs or "
        "--max_steps also a finished run",
    )
    restart_schedule: bool = in_run(False, "run the schedule again over the steps added to a finished run")
    allow_changes: bool = in_run(False, "resume even if the configuration differs")
    steps_per_log: int = in_run(100, "write metrics every N steps", minimum=1)
    print_freq: int = in_run(10, "refresh the progress line every N steps", minimum=1)
    pretrained_weights_dir: str = in_run("", "read this weights file", scripts=("evaluate", *INFERENCE, "export"))
    features: str = in_run(
        "", "score a features file (.h5, .npz, layumi's .mat) instead of weights", scripts=("evaluate",)
    )
    report: bool = in_run(False, "write report.html beside the result", scripts=("evaluate",))
    debug: bool = in_run(False, "show tracebacks of input errors", scripts=BOTH)

    def __post_init__(self):
        for f in fields(self):
            check_value(f, getattr(self, f.name))
        for check in (check_batches, check_run, check_training):
            check(self)
        check_model(self.model, self.stripes, **{name: getattr(self, name) for name in CHOICES})

    @property
    def datasets(self) -> str:
        """The datasets as a folder name: market1501+dukemtmc."""
        return "+".join(self.dataset_type)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """{section: {field: value}}, plain values only."""
        sections: dict[str, dict[str, Any]] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            value = list(value) if isinstance(value, tuple) else value
            sections.setdefault(f.metadata["section"], {})[f.name] = value
        return sections

    @classmethod
    def from_json(cls, sections: dict[str, dict[str, Any]], source: str) -> "Config":
        """Inverse of to_json. Raises InputError, naming `source`, for unknown fields or invalid values."""
        if not isinstance(sections, dict) or not all(isinstance(s, dict) for s in sections.values()):
            raise InputError(f"{source}: expected a configuration, {{section: {{field: value}}}}")
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        for section in sections.values():
            for name, value in section.items():
                if name not in known:
                    raise InputError(f"{source}: unknown configuration field {name!r}; made by another version?")
                values[name] = tuple(value) if isinstance(value, list) else value
        try:
            return cls(**values)
        except InputError as e:
            raise InputError(f"{source}: {e}") from e

    def for_evaluation(self) -> "Config":
        """A copy with the defaults for the run section, precision, batch size and ghost batch."""
        reset: dict[str, Any] = {f.name: f.default for f in fields(self) if f.metadata["section"] == "run"}
        for name in ("precision", "batch_size", "ghost_batch"):
            reset[name] = getattr(Config, name)
        return replace(self, **reset, batch_sample=1)  # K is used only in training

    def changes(self, other: "Config") -> dict[str, Any]:
        """Fields that affect results and differ from `other`, with the values of this configuration."""
        names = [f.name for f in fields(self) if f.metadata["section"] != "run"]
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(other, name)}


def in_words(changes: Mapping[str, Any]) -> str:
    """
    >>> in_words({"stripes": (4, 2), "relation": "none"})
    'stripes 4 2, relation none'
    """
    return ", ".join(f"{name} {value_text(value)}" for name, value in changes.items())


def value_text(value: Any) -> str:
    """A value as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_value(f: Field, value) -> None:
    """Checks type, choices and range of one field. Raises InputError that names the flag."""
    flag, minimum = "--" + f.name, f.metadata["minimum"]
    many = isinstance(f.default, tuple)
    kind: Any = get_args(f.type)[0] if many else type(f.default)
    if many != isinstance(value, tuple):
        raise InputError(f"{flag} {value!r} has the wrong type; expected {'a list' if many else 'one value'}")
    items: tuple[Any, ...] = value if many else (value,)
    for item in items:
        if type(item) is not kind and not (kind is float and type(item) is int):
            raise InputError(f"{flag} {item!r} has the wrong type; expected {kind.__name__}")
        if f.metadata["choices"] and not from_timm(f.name, item):
            check_known(f.name, item, f.metadata["choices"])
        if kind is float and not math.isfinite(item):
            raise InputError(f"{flag} {item} is not a finite number")
        if kind in (int, float) and item < minimum:
            raise InputError(f"{flag} {item} is too small; the minimum is {minimum}")


def check_known(name: str, value: Any, choices: Iterable) -> None:
    """Raises InputError for a value of the flag `name` that is not one of the choices."""
    if value not in choices:
        known = [str(choice) for choice in choices if choice is not None]
        raise InputError(f"--{name} {value} is unknown; choose from {', '.join(known)}{closest(value, known)}")


def check_batches(c: Config) -> None:
    size, k, ghost = c.batch_size, c.batch_sample, c.ghost_batch
    if c.sampler == "pk" and size % k:
        nearest = -(-size // k) * k
        raise InputError(f"--batch_size {size} is not a multiple of --batch_sample {k}; use --batch_size {nearest}")
    if size < k:
        raise InputError(f"--batch_size {size} is less than --batch_sample {k}")
    if ghost and size % ghost:
        raise InputError(f"--ghost_batch {ghost} does not divide --batch_size {size}")
    if c.sampler == "anchor" and c.visits:
        raise InputError("--visits cannot be used with --sampler anchor, where every image is an anchor once")


def check_run(c: Config) -> None:
    if c.name.startswith(".") or set(c.name) & set("/\\\0*?[]"):
        raise InputError(f"--name {c.name!r} is not a folder name; use letters, digits, '-' and '_'")
    if len(set(c.dataset_type)) < len(c.dataset_type):
        raise InputError(f"--dataset_type {' '.join(c.dataset_type)} names a dataset twice")
    if len(set(c.occlude)) < len(c.occlude):
        raise InputError(f"--occlude {' '.join(map(str, c.occlude))} names a band twice")
    if c.multi_query != "none" and any(c.occlude):
        raise InputError("--occlude covers single query images; leave out --multi_query")
    if not 0 < c.fpr <= MOST_FPR:
        raise InputError(f"--fpr {c.fpr}: give a rate of false accepts above 0, at most {MOST_FPR}")
    if c.device == "cpu" and c.gpus:
        raise InputError(f"--device cpu has no GPUs; remove --gpus {' '.join(map(str, c.gpus))}")


def check_training(c: Config) -> None:
    for name in ("erasing_probability", "erasing_area", "smoothing", "momentum"):
        if getattr(c, name) > 1:
            raise InputError(f"--{name} {getattr(c, name)} is more than 1")
    check_schedule(c)
    if c.seed >= 2**63:
        raise InputError(f"--seed {c.seed} is too large; the largest is 2**63 - 1")
    if c.triplet_weight == c.ce_weight == 0:
        raise InputError("--triplet_weight and --ce_weight are both 0; training needs a loss")
    if c.soft_margin and not c.triplet_weight:
        raise InputError("--soft_margin changes the triplet loss, whose --triplet_weight is 0")
    if c.teacher and not c.teacher_weight:
        raise InputError("--teacher_weight 0 does not use the teacher; remove --teacher")
    if not c.teacher and c.teacher_weight != Config.teacher_weight:
        raise InputError("--teacher_weight needs --teacher WEIGHTS")


def check_schedule(c: Config) -> None:
    if c.warmup_steps and c.warmup_epochs:
        raise InputError("give --warmup_steps or --warmup_epochs, not both")
    if list(c.decay_schedule) != sorted(c.decay_schedule):
        raise InputError(f"--decay_schedule {' '.join(map(str, c.decay_schedule))} is not in increasing order")
    if c.flat_epochs and c.schedule != "cosine":
        raise InputError(f"--flat_epochs belongs to --schedule cosine, not to {c.schedule}")
    for name in ("flat_epochs", "freeze_epochs"):
        if getattr(c, name) >= c.epochs:
            raise InputError(f"--{name} {getattr(c, name)} is not less than --epochs {c.epochs}")


def closest(word: str, known: Sequence[str]) -> str:
    """' (did you mean ...?)' or nothing."""
    near = difflib.get_close_matches(str(word), known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
