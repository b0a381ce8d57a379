"""Descriptors of any images: in Python (Extractor), on the command line (python -m reid extract)."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from reid.data.loader import ImageStore, decode, in_order
from reid.data.prepare.archive import IMAGES
from reid.data.records import Image
from reid.errors import InputError, MissingInput
from reid.evaluation.features import common_folder, content_of, describe, extract_file, is_features, read_h5
from reid.models import read_weights
from reid.models.files import sha256
from reid.models.rrid import SlotLayer
from reid.runs import atomic_file, pick_device, writing

LISTS = (".txt", ".tsv")
PRECISIONS = ("fp32", "tf32", "bf16")


class Extractor:
    """Weights made ready for use: extractor(images) -> descriptors (N, S x D) float32 of unit length.

    `images` is a sequence of paths or uint8 RGB arrays (H, W, 3) of any size; they are resized as in training.
    The model runs with batch norms folded into what stands before them, channels last, and is equal to the training
    model's eval mode to 1e-4. precision: fp32, tf32, or bf16 (about twice as fast where the hardware has it; cosines to
    the float32 descriptors above 0.999). compile: torch.compile of the backbone: half a minute once, then 1.15 times as
    fast in float32; it sets torch._inductor.config.freezing for the whole process. Raises MissingInput, InputError.

    Extractor("weights.pth")(["a.jpg", "b.jpg"]) has the shape (2, 3840) for the paper's model.
    """

    def __init__(
        self,
        weights: str | Path,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        compile: bool = False,
        flip: bool = True,
        batch_size: int = 32,
        num_workers: int = 4,
    ):
        if precision not in PRECISIONS or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"precision {precision!r}, batch_size {batch_size!r}: expected one of "
                             f"{', '.join(PRECISIONS)}, and a whole number from 1 up")  # fmt: skip
        try:
            self.device = torch.zeros(0, device=device).device
        except (RuntimeError, AssertionError) as e:  # torch's, of a build without CUDA too
            raise InputError(f"device {device!r} cannot be used here: {e}") from e
        model, config = read_weights(weights)
        self.size, self.flip, self.precision = (config.h, config.w), flip, precision
        self.batch_size, self.num_workers = batch_size, num_workers
        self.weights, self.sha256 = Path(weights), sha256(Path(weights))
        self.model = prepare(model, self.size, precision, compile).to(self.device)

    def __call__(self, images: Iterable[str | Path | np.ndarray]) -> np.ndarray:
        if isinstance(images, (str, Path)) or getattr(images, "ndim", 1) == 3:
            raise InputError("one image came, expected a sequence of them: put it into a list")
        found = describe(self.model, self.batches(list(images)), self.device, self.flip, self.precision)
        rows = [d.flatten(1).cpu() for d in found]
        return torch.cat(rows).numpy() if rows else np.zeros((0, 0), np.float32)

    def batches(self, images: Sequence[str | Path | np.ndarray]) -> Iterator[Tensor]:
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            for rows in in_order(len(images), self.batch_size):
                pixels = np.stack(list(pool.map(self.pixels, [images[i] for i in rows])))
                yield torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def pixels(self, image: str | Path | np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8."""
        if isinstance(image, (str, Path)):
            return decode(str(image), *self.size)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
            what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InputError(f"an image is {what}; expected a path or a uint8 RGB array (height, width, 3)")
        height, width = self.size
        return np.asarray(PILImage.fromarray(image).resize((width, height), PILImage.Resampling.BILINEAR))


def prepare(model: nn.Module, size: tuple[int, int], precision: str = "fp32", compile: bool = False) -> nn.Module:
    """The model, on the CPU, changed for inference only: batch norms folded, channels last, convolutions in
    `precision`."""
    model = fold(model.eval(), size).to(memory_format=torch.channels_last)
    base = getattr(model, "base", None)
    if precision == "bf16" and base is not None:  # once, instead of in every forward; heads stay float32
        for module in base.modules():
            if type(module) is nn.Conv2d:  # a subclass may have a precision of its own
                module.to(torch.bfloat16)
    if compile:
        from torch._inductor import config as inductor

        inductor.freezing = True  # packs weights, fuses ReLUs; compile(options=...) does not reach it
        (model if base is None else base).compile()
    return model


def fold(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The model, on the CPU, with each batch norm folded into the convolution or SlotLayer that feeds it; in eval mode
    the outputs are equal but for rounding.

    What feeds what is seen by running it on one image of noise: a batch norm's input is the very tensor that a
    convolution gave. Those used more than once are left; the outputs are compared afterwards.
    """
    names = {module: name for name, module in model.named_modules()}
    made: dict[int, nn.Module] = {}  # id of a tensor -> the convolution that gave it
    kept: list[Tensor] = []  # so that no id is used twice
    calls: list[nn.Module] = []
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def note(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        calls.append(module)
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module
            kept.append(output)
        elif id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])], module))

    seen = [m for m in names if isinstance(m, (nn.Conv2d, _BatchNorm))]
    hooks = [m.register_forward_hook(note) for m in seen]
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(noise)
    for hook in hooks:
        hook.remove()

    def replace(module: nn.Module, by: nn.Module) -> None:
        parent, _, name = names[module].rpartition(".")
        setattr(model.get_submodule(parent), name, by)

    for convolution, norm in pairs:
        if calls.count(convolution) == calls.count(norm) == 1:
            replace(convolution, fuse_conv_bn_eval(convolution, norm))
            replace(norm, nn.Identity())
    for layer in [m for m in names if isinstance(m, SlotLayer)]:
        scale = layer.norm.weight * (layer.norm.running_var + layer.norm.eps).rsqrt()
        shift = layer.norm.bias - layer.norm.running_mean * scale
        layer.weight.data *= scale.view_as(layer.bias)[:, :, None]
        layer.bias.data = layer.bias.data * scale.view_as(layer.bias) + shift.view_as(layer.bias)
        layer.norm = nn.Identity()
    with torch.inference_mode():
        change = (model(noise) - before).abs().max()
    assert not change > 1e-3 * before.abs().max(), "a convolution's output goes elsewhere than into its batch norm"
    return model.requires_grad_(False)


def find_images(sources: Sequence[str]) -> list[Image]:
    """Images of folders (all below, sorted), patterns (sorted), lists and files, in the order of `sources`.

    A list is a .txt or .tsv file: in each line a path, relative to the list, and where known pid and camid after tabs;
    elsewhere both are -1. Raises MissingInput for what is not there, InputError for what holds no image.
    """
    found: list[Image] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES and not p.is_dir())
            images = [Image(str(p), -1, -1) for p in files]
        elif path.is_file():
            images = read_list(path) if path.suffix.lower() in LISTS else [Image(source, -1, -1)]
        elif glob.has_magic(source):
            images = [Image(p, -1, -1) for p in sorted(glob.glob(source, recursive=True)) if os.path.isfile(p)]
        else:
            raise MissingInput(f"--images {source}: no such folder, file or list")
        if not images:
            raise InputError(f"--images {source}: no image there; expected {', '.join(IMAGES)}")
        found += images
    return list({os.path.abspath(image.path): image for image in found}.values())


def read_list(path: Path) -> list[Image]:
    images = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is no list of images: {e}") from e
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *labels = line.split("\t")
        try:
            pid, camid = [int(np.int64(int(x))) for x in labels] + [-1] * (2 - len(labels))
        except (ValueError, OverflowError) as e:
            raise InputError(f"{path}, line {number}: expected 'path', 'path TAB pid' or 'path TAB pid TAB camid', got "
                             f"{line!r}") from e  # fmt: skip
        images.append(Image(str(path.parent / name), pid, camid))
    return images


def readable(images: list[Image], size: tuple[int, int], num_workers: int, skip_bad: bool) -> list[Image]:
    """The images that can be decoded; the others are listed on stderr.

    Raises InputError when there are such and skip_bad is not given, or when none is left.
    """

    def problem(image: Image) -> str | None:
        try:
            decode(image.path, *size)
        except InputError as e:
            return str(e)
        return None

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        bar = tqdm(pool.map(problem, images), "checking", len(images), unit=" images", disable=None)
        problems = list(bar)
    bad = [p for p in problems if p]
    if bad:
        print("\n".join(bad), file=sys.stderr)
    if bad and not skip_bad:
        raise InputError(f"{len(bad)} of {len(images)} images cannot be read (listed above); nothing was written. "
                         "Repair them, or leave them out with --skip_bad")  # fmt: skip
    if len(bad) == len(images):
        raise InputError(f"none of the {len(images)} images can be read")
    return [image for image, p in zip(images, problems) if not p]


def add_extractor_flags(parser) -> None:
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto",
                        help="of the backbone; auto: bf16 on CUDA, fp32 on the CPU (default auto)")  # fmt: skip
    parser.add_argument("--compile", action="store_true", default=False, help="torch.compile the backbone first")
    parser.add_argument("--no_flip", action="store_true", default=False, help="leave the mirror image out")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="default 32")
    parser.add_argument("--num_workers", type=int, default=4, metavar="N", help="decoding threads (default 4)")
    parser.add_argument("--gpus", type=int, nargs=1, default=[0], help="CUDA device; without CUDA the CPU")


def add_images_flags(parser, required: bool) -> None:
    parser.add_argument("--weights", required=required, default=None, help="weights.pth or .safetensors")
    parser.add_argument("--images", required=required, default=None, nargs="+",
                        help="folders, patterns, lists (.txt) or image files")  # fmt: skip
    parser.add_argument("--skip_bad", action="store_true", default=False, help="list unreadable images, go on without")
    add_extractor_flags(parser)


def make_extractor(weights: str | Path, a) -> Extractor:
    """By the flags of add_extractor_flags."""
    if a.batch_size < 1 or a.num_workers < 0 or a.gpus[0] < 0:
        raise InputError("--batch_size must be at least 1, --num_workers and --gpus at least 0")
    device = pick_device(tuple(a.gpus))
    precision = a.precision if a.precision != "auto" else "bf16" if device.type == "cuda" else "fp32"
    return Extractor(weights, device, precision, a.compile, not a.no_flip, a.batch_size, a.num_workers)


def extract_to(path: Path, extractor: Extractor, images: list[Image]) -> None:
    """A features.h5 whose images are all gallery; goes on where an earlier call of the same images was stopped."""
    store = ImageStore(images, *extractor.size, extractor.num_workers, device=extractor.device)
    extract_file(
        path, extractor.model, lambda start: store.batches(in_order(len(images), extractor.batch_size, start)), [],
        images, extractor.device, extractor.sha256, "", extractor.flip,
        extractor.precision, size=f"{extractor.size[0]}x{extractor.size[1]}", content=content_of(images),
        folder=common_folder([image.path for image in images]),
    )  # fmt: skip


def add_arguments(parser) -> None:
    add_images_flags(parser, required=True)
    parser.add_argument("--out", required=True, help="features .h5, or .npz (features, names, pids, camids)")


def main(arguments) -> int:
    a, out = arguments, Path(arguments.out)
    if out.suffix not in (".h5", ".npz") or out.is_dir():
        raise InputError(f"--out {out}: expected a file's name that ends in .h5 or .npz")
    if out.suffix == ".h5" and out.exists() and not is_features(out):
        raise InputError(f"--out {out}: a file that is no features file is there, and stays; give another name")
    images = find_images(a.images)
    extractor = make_extractor(a.weights, a)
    images = readable(images, extractor.size, a.num_workers, a.skip_bad)
    work = out if out.suffix == ".h5" else out.with_name(f".{out.name}.h5")  # rows of an .npz cannot come one by one
    with writing(out):
        extract_to(work, extractor, images)
        if work != out:
            sides, attrs = read_h5(work)
            features, pids, camids, names = sides["gallery"]
            with atomic_file(out) as temporary, open(temporary, "wb") as f:
                np.savez(f, features=features, pids=pids, camids=camids, names=np.array(names), **attrs)
            work.unlink()
    print(f"{len(images)} descriptors in {out}")
    return 0
