"""The configuration: one frozen dataclass = command line (flags.py) = JSON in the run folder.

Fields are grouped by room. Rooms `data`, `model`, `training` and `evaluation` change numbers; what stands
in room `run` does not, so it takes no part in run names and may differ at resume.
"""

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args

from reid.errors import InputError

MODELS = ("rrid", "baseline", "strong_baseline", "pcb", "mgn")
BACKBONES = ("resnet50", "resnet18", "resnet34", "resnet101", "mobilenet_v2", "efficientnet_v2_s")
BOTH = ("train", "evaluate")


def option(default, room: str, help: str, choices=None, scripts=("train",), minimum=None) -> Any:
    """A configuration field; `scripts` are the command lines that have it as a flag."""
    metadata = {"room": room, "help": help, "choices": choices, "scripts": scripts, "minimum": minimum}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Every setting of a run. The defaults are the profile `paper`."""

    profile: str = option("paper", "run", "named defaults, listed in reid/profiles.py; other flags change them")

    dataset_type: tuple[str, ...] = option(
        ("market1501",),
        "data",
        "folders under --dataset_path; several are trained together, scored one by one",
        None,
        BOTH,
    )
    dataset_path: str = option("./datasets", "run", "folder of the datasets", scripts=BOTH)
    split: int = option(0, "data", "entry of splits.json", minimum=0)
    train_set: str = option("trainval", "data", "train holds --num_val identities out", ("trainval", "train"))
    num_val: int = option(100, "data", "identities held out for validation by --train_set train", minimum=1)
    h: int = option(384, "data", "image height in pixels", scripts=BOTH, minimum=16)
    w: int = option(128, "data", "image width in pixels", scripts=BOTH, minimum=16)
    batch_size: int = option(64, "data", "images in a batch", scripts=BOTH, minimum=1)
    batch_sample: int = option(4, "data", "images of one identity in a batch (K)", minimum=1)
    sampler: str = option(
        "pk", "data", "pk: P identities x K images; anchor: the published one; random", ("pk", "anchor", "random")
    )
    visits: int = option(0, "data", "times an epoch visits an image (0: K, as published; random: once)", minimum=0)
    crop_padding: int = option(0, "data", "random crop after black padding of N pixels", minimum=0)
    erasing: str = option(
        "in_place", "data", "where the erased patch goes; published: at its own size", ("in_place", "published")
    )
    erasing_probability: float = option(0.5, "data", "share of images erased (published: (1 + p) / 2)", minimum=0)
    erasing_area: float = option(0.2, "data", "largest share of an image that is erased", minimum=0.02)
    erasing_fill: str = option("random", "data", "colour of the patch", ("random", "mean"))
    num_workers: int = option(4, "run", "decoding threads", scripts=BOTH, minimum=0)
    cache: str = option("auto", "run", "where decoded training images are kept", ("auto", "none", "ram", "gpu"))

    model: str = option("rrid", "model", "the method; each brings its recipe", MODELS)
    backbone: str = option("resnet50", "model", "torchvision network before the heads", BACKBONES)
    pretrained: str = option("auto", "model", "auto: pretrained/, then download; none; or a weights file")
    last_stride: int = option(1, "model", "of the backbone's last stage (baseline, strong_baseline)", (1, 2))
    stripes: tuple[int, ...] = option((6, 4, 2), "model", "stripe counts, each >= 2 (rrid, pcb, mgn)", minimum=2)
    relation: str = option("one_vs_rest", "model", "relation of a part to the others", ("one_vs_rest", "none"))
    pooling: str = option("gcp", "model", "the whole-body feature", ("gcp", "max", "avg", "none"))
    contrast: str = option(
        "mean_of_rest", "model", "what GCP contrasts the maximum with", ("mean_of_rest", "mean_minus_max")
    )
    ce_on: str = option("all", "model", "features with classifiers: q, a and b, or only q", ("all", "final"))
    neck: str = option("none", "model", "batch norm before the classifier (strong_baseline)", ("none", "bnneck"))
    classes: int = option(0, "model", "outputs of a classifier (0: one for each identity)", minimum=0)

    epochs: int = option(80, "training", "passes; an epoch has 4 x images / batch_size steps", minimum=1)
    max_steps: int = option(0, "training", "stop after N steps, drops at the same fractions (0: by epochs)", minimum=0)
    warmup_steps: int = option(0, "training", "steps of linear warm-up", minimum=0)
    warmup_epochs: int = option(0, "training", "epochs of linear warm-up, cut with --max_steps as drops are", minimum=0)
    optimizer: str = option("sgd", "training", "nesterov is SGD with it", ("sgd", "nesterov", "adam"))
    lr: float = option(1e-2, "training", "learning rate of the heads", minimum=0)
    base_lr: float = option(1e-3, "training", "learning rate of the backbone", minimum=0)
    base_lr_from: int = option(1, "training", "epoch from which base_lr counts, lr before (published: 40)", minimum=1)
    decay_schedule: tuple[int, ...] = option((40, 60), "training", "epochs at whose start the rate drops", minimum=1)
    staircase_decay_multiply_factor: float = option(0.1, "training", "factor of a drop", minimum=0)
    momentum: float = option(0.9, "training", "SGD momentum", minimum=0)
    weight_decay: float = option(5e-4, "training", "L2 penalty on every parameter", minimum=0)
    schedule: str = option("staircase", "training", "of the learning rate", ("staircase", "cosine"))
    margin: float = option(1.2, "training", "triplet margin", minimum=0)
    triplet_weight: float = option(1.0, "training", "of the sum of the triplet losses", minimum=0)
    ce_weight: float = option(2.0, "training", "of the sum of the cross entropies", minimum=0)
    center_weight: float = option(0.0, "training", "of the center loss", minimum=0)
    smoothing: float = option(0.0, "training", "label smoothing of the cross entropy", minimum=0)
    precision: str = option(
        "auto",
        "training",
        "of the backbone; auto: bf16 where the GPU supports it, else fp32",
        ("auto", "fp32", "tf32", "bf16"),
        BOTH,
    )
    ghost_batch: int = option(0, "training", "images that share batch-norm statistics (0: the whole batch)", minimum=0)
    compile: bool = option(False, "training", "torch.compile the backbone")
    seed: int = option(0, "training", "of weights, batches and augmentation", minimum=0)
    eval_every: int = option(
        5, "training", "epochs between validations (--train_set train; 0: none, the last weights count)", minimum=0
    )

    ap: str = option("step", "evaluation", "average precision", ("step", "trapezoid"), ("evaluate",))
    cmc: str = option("market1501", "evaluation", "CMC", ("market1501", "allshots", "cuhk03"), ("evaluate",))
    metric: str = option("euclidean", "evaluation", "distance", ("euclidean", "cosine"), ("evaluate",))
    rerank: bool = option(False, "evaluation", "k-reciprocal re-ranking", scripts=("evaluate",))
    query_expansion: int = option(
        0, "evaluation", "queries become the mean with their N nearest gallery images", scripts=("evaluate",), minimum=0
    )
    no_cameras: bool = option(False, "evaluation", "nothing is junk", scripts=("evaluate",))
    camera_pairs: bool = option(False, "evaluation", "a table of camera against camera", scripts=("evaluate",))
    fpr: float = option(
        1e-3, "evaluation", "rate of false accepts for the recommended threshold", scripts=("evaluate",), minimum=0
    )

    occlude: tuple[int, ...] = option(
        (0,), "evaluation", "cover this sixth of each query image, 1 the head, 6 the feet; several one by one",
        tuple(range(7)), ("evaluate",),
    )  # fmt: skip

    device: str = option(
        "auto", "run", "auto: a GPU if there is one", ("auto", "cpu", "cuda", "mps", "xpu"), scripts=BOTH
    )
    gpus: tuple[int, ...] = option(
        (), "run", "GPU ids, one process per id (default: the first GPU, or the CPU)", scripts=BOTH, minimum=0
    )
    exp_dir: str = option("./logs", "run", "runs go to exp_dir/dataset/name", scripts=BOTH)
    name: str = option("", "run", "run name (default: the fields that differ from the profile)")
    resume: str = option("", "run", "continue the newest unfinished run of this name, or the given folder")
    allow_changes: bool = option(False, "run", "resume although the configuration differs")
    steps_per_log: int = option(100, "run", "steps between lines in metrics.jsonl and TensorBoard", minimum=1)
    print_freq: int = option(10, "run", "steps between refreshes of the progress line", minimum=1)
    pretrained_weights_dir: str = option(
        "", "run", "weights file (default: the newest finished run)", scripts=("evaluate",)
    )
    features: str = option(
        "", "run", "score a features file (.h5, .npz, layumi's .mat) instead of weights", scripts=("evaluate",)
    )
    report: bool = option(
        False, "run", "write report.html, a page to look at, beside the result", scripts=("evaluate",)
    )
    debug: bool = option(False, "run", "show tracebacks of input errors", scripts=BOTH)

    def __post_init__(self):
        for f in fields(self):
            check_value(f, getattr(self, f.name))
        for wrong, message in self.contradictions():
            if wrong:
                raise InputError(message)

    def contradictions(self) -> Iterator[tuple[bool, str]]:
        """(whether it holds, what to say) for settings that do not go together."""
        size, k, counts = self.batch_size, self.batch_sample, " ".join(map(str, self.stripes))
        yield (
            size % k > 0 and self.sampler == "pk",
            (f"--batch_size {size} is not a multiple of --batch_sample {k}; use --batch_size {-(-size // k) * k}"),
        )
        yield size < k, f"--batch_size {size} is less than --batch_sample {k}"
        bad_name = self.name.startswith(".") or any(c in self.name for c in "/\\\0*?[]")
        yield bad_name, f"--name {self.name!r} is no folder name; use letters, digits, '-' and '_'"
        twice = len(set(self.dataset_type)) < len(self.dataset_type)
        yield twice, f"--dataset_type {' '.join(self.dataset_type)} names a dataset twice"
        for name in ("erasing_probability", "erasing_area", "smoothing", "momentum"):
            yield getattr(self, name) > 1, f"--{name} {getattr(self, name)} is more than 1"
        ghost = self.ghost_batch
        yield ghost > 0 and size % ghost > 0, f"--ghost_batch {ghost} does not divide --batch_size {size}"
        yield (
            self.sampler == "anchor" and self.visits > 0,
            ("--visits has no meaning with --sampler anchor, where every image is an anchor once"),
        )
        yield self.warmup_steps > 0 and self.warmup_epochs > 0, "give --warmup_steps or --warmup_epochs, not both"
        yield (
            list(self.decay_schedule) != sorted(self.decay_schedule),
            (f"--decay_schedule {' '.join(map(str, self.decay_schedule))} is not in increasing order"),
        )
        yield self.seed >= 2**63, f"--seed {self.seed} is too large; the largest is 2**63 - 1"
        yield self.triplet_weight == 0 and self.ce_weight == 0, "--triplet_weight and --ce_weight are both 0: no loss"

        ids = " ".join(map(str, self.gpus))
        yield self.device == "cpu" and bool(self.gpus), f"--device cpu has no GPUs; leave --gpus {ids} out"
        least, most = {"rrid": (1, 99), "mgn": (1, 99), "pcb": (1, 1)}.get(self.model, (0, 0))
        yield len(self.stripes) < least, f"--model {self.model} needs a stripe count, for example --stripes 6"
        yield len(self.stripes) > most, f"--stripes {counts}: --model {self.model} takes {most or 'none'}"
        yield len(set(self.stripes)) < len(self.stripes), f"--stripes {counts} names a stripe count twice"
        owners = {"relation": "rrid", "pooling": "rrid", "contrast": "rrid", "ce_on": "rrid", "neck": "strong_baseline"}
        defaults = {f.name: f.default for f in fields(self)}
        for name, owner in owners.items():
            changed = getattr(self, name) != defaults[name]
            yield changed and self.model != owner, f"--{name} belongs to --model {owner}, not to {self.model}"
        yield (
            self.last_stride != 1 and "baseline" not in self.model,
            (f"--last_stride {self.last_stride}: --model {self.model} is defined on the map of stride 16"),
        )

    @property
    def datasets(self) -> str:
        """The datasets as a folder name: market1501+dukemtmc."""
        return "+".join(self.dataset_type)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """{room: {field: value}}, plain values only."""
        rooms: dict[str, dict[str, Any]] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            rooms.setdefault(f.metadata["room"], {})[f.name] = list(value) if isinstance(value, tuple) else value
        return rooms

    @classmethod
    def from_json(cls, rooms: dict[str, dict[str, Any]], source: str) -> "Config":
        """Inverse of to_json. Raises InputError naming `source` for fields or values it does not know."""
        if not isinstance(rooms, dict) or not all(isinstance(room, dict) for room in rooms.values()):
            raise InputError(f"{source}: expected a configuration, an object of rooms with their fields")
        known = {f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for room in rooms.values():
            for name, value in room.items():
                if name not in known:
                    raise InputError(f"{source}: unknown configuration field {name!r}; made by another version?")
                values[name] = tuple(value) if isinstance(value, list) else value
        try:
            return cls(**values)
        except InputError as e:
            raise InputError(f"{source}: {e}") from e

    def for_evaluation(self) -> "Config":
        """This training's data and model settings, with the defaults in all that only concerned the training."""
        defaults = {
            f.name: f.default
            for f in fields(self)
            if f.metadata["room"] == "run" or f.name in ("precision", "batch_size", "ghost_batch")
        }
        return replace(self, **defaults, batch_sample=1)  # K is the training's

    def changes(self, other: "Config") -> dict[str, Any]:
        """Fields that change numbers and differ from `other`, with this configuration's values."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.metadata["room"] != "run" and getattr(self, f.name) != getattr(other, f.name)
        }


def check_value(f, value) -> None:
    """Type, choices and range of one field; errors name the flag as a user types it."""
    flag, choices, minimum = "--" + f.name, f.metadata["choices"], f.metadata["minimum"]
    items = value if isinstance(value, tuple) and isinstance(f.default, tuple) else (value,)
    expected = get_args(f.type)[0] if isinstance(f.default, tuple) else f.type
    if f.type is float:
        expected = (float, int)
    for item in items:
        if not isinstance(item, expected) or (isinstance(item, bool) and f.type is not bool):
            raise InputError(f"{flag} {item!r} has the wrong type; expected {getattr(f.type, '__name__', f.type)}")
        if choices and item not in choices:
            known = [str(c) for c in choices]
            raise InputError(f"{flag} {item} is unknown; choose from {', '.join(known)}{closest(item, known)}")
        if expected in (float, (float, int)) and not math.isfinite(item):
            raise InputError(f"{flag} {item} is not a finite number")
        if minimum is not None and not item >= minimum:
            raise InputError(f"{flag} {item} is too small; the least is {minimum}")


def closest(word: str, known: Sequence[str]) -> str:
    """' (did you mean ...?)' or nothing."""
    near = difflib.get_close_matches(str(word), known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
