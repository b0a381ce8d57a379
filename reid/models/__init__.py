"""Models: built from a configuration, read back from a file without any flags."""

from pathlib import Path

from torch import Tensor, nn

from reid.config import Config
from reid.errors import InputError
from reid.models.baseline import Baseline
from reid.models.files import load_tensors
from reid.models.mgn import MGN
from reid.models.pcb import PCB
from reid.models.published import from_published, is_published
from reid.models.rrid import RRID
from reid.models.strong_baseline import StrongBaseline


def build_model(config: Config, num_classes: int) -> nn.Module:
    """The configuration's model, untrained: images (N, 3, H, W) -> features (N, S, D) in eval mode, Output in training
    mode. `base` is its backbone, `bands` the part of the image's height that each slot looks at; num_classes 0: without
    classifiers."""
    c = config
    match c.model:
        case "baseline":
            model = Baseline(num_classes, c.backbone, c.last_stride)
        case "strong_baseline":
            model = StrongBaseline(num_classes, c.backbone, c.last_stride, c.neck)
        case "pcb":
            model = PCB(num_classes, c.stripes[0], c.backbone)
        case "mgn":
            model = MGN(num_classes, c.stripes, c.backbone)
        case _:
            model = RRID(num_classes, c.stripes, c.backbone, c.relation, c.pooling, c.contrast, c.ce_on)
    model.num_classes = num_classes
    return model


def load_model(path: str | Path) -> nn.Module:
    """The model of a weights file, in eval mode, on the CPU; see read_weights for what is accepted."""
    model, _ = read_weights(path)
    return model


def read_weights(path: str | Path) -> tuple[nn.Module, Config]:
    """(model in eval mode, its configuration) of our weights.pth or of a state dict in the published layout.

    The published layout says nothing of its input size: 384x128 is taken. Raises MissingInput, InputError.
    """
    content = load_tensors(Path(path))
    if "format" in content:
        missing = [k for k in ("config", "classes", "state") if k not in content]
        if content["format"] != 1 or missing:
            raise InputError(
                f"{path}: format {content['format']}, missing {missing or 'nothing'}; "
                "expected format 1 with config, classes, state"
            )
        plain = isinstance(content["config"], dict) and isinstance(content["state"], dict)
        if not plain or not isinstance(content["classes"], int) or content["classes"] < 0:
            raise InputError(f"{path}: config, classes or state is not what format 1 has; make the file again")
        config = Config.from_json(content["config"], str(path))
        model = build_model(config, content["classes"])
        fill(model, content["state"], path)
    elif is_published(content):
        state, stripes, num_classes = from_published(content)
        config = Config(stripes=stripes)
        model = build_model(config, num_classes)
        fill(model, state, path)
    else:
        raise InputError(
            f"{path} is neither weights of this project nor of the published layout; "
            f"its first keys: {', '.join(map(str, list(content)[:3]))}"
        )
    return model.eval(), config


def fill(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """load_state_dict whose error says in one line what does not fit."""
    own = model.state_dict()
    if odd := [k for k, v in state.items() if not isinstance(v, Tensor)]:
        raise InputError(f"{path}: {odd[0]} is no tensor")
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    # torch before 0.4.1 kept no batch counter; no result depends on it
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    foreign = [k for k in state if k not in own]
    if shapes or missing or foreign:
        raise InputError(
            f"{path} does not fit the model: {len(missing)} tensors missing, {len(foreign)} unknown, {len(shapes)} of "
            f"another shape (the first: {(shapes + missing + foreign)[0]}); another architecture or class count?"
        )
    model.load_state_dict(state, strict=False)
