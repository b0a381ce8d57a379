"""python -m reid extract: descriptors of any images."""

from pathlib import Path

import numpy as np

from reid.data.images import find_images, readable
from reid.data.loader import ImageStore, in_order
from reid.data.records import Image
from reid.device import DEVICES, find_hardware, set_up
from reid.errors import InputError
from reid.evaluation.features import common_folder
from reid.evaluation.record import Record
from reid.evaluation.store import is_features, read_h5
from reid.files import atomic_file, writing
from reid.inference.describe import content_of, extract_file
from reid.inference.extractor import PRECISIONS, Extractor


def add_extractor_flags(parser) -> None:
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto",
                        help="of the backbone; auto: bf16 on CUDA, fp32 on the CPU (default auto)")  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="torch.compile the backbone first")
    parser.add_argument("--no_flip", action="store_true", help="leave the mirror image out")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="default 32")
    parser.add_argument("--num_workers", type=int, default=4, metavar="N", help="decoding threads (default 4)")
    parser.add_argument("--gpus", type=int, nargs=1, default=[], help="GPU id (default: the first GPU, or the CPU)")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="default auto: a GPU if there is one")


def add_images_flags(parser, required: bool) -> None:
    parser.add_argument("--weights", required=required, help="weights.pth or .safetensors")
    parser.add_argument("--images", required=required, nargs="+",
                        help="folders, patterns, lists (.txt) or image files")  # fmt: skip
    parser.add_argument("--skip_bad", action="store_true", help="list unreadable images, go on without")
    add_extractor_flags(parser)


def make_extractor(weights: str | Path, a) -> Extractor:
    """By the flags of add_extractor_flags."""
    if a.batch_size < 1 or a.num_workers < 0 or min(a.gpus, default=0) < 0:
        raise InputError("--batch_size must be at least 1, --num_workers and --gpus at least 0")
    hardware = find_hardware(a.device, tuple(a.gpus))
    precision = set_up(hardware, a.precision)
    return Extractor(weights, hardware.device, precision, a.compile, not a.no_flip, a.batch_size, a.num_workers)


def extract_to(path: Path, extractor: Extractor, images: list[Image]) -> None:
    """A features.h5 whose images are all gallery; goes on where an earlier call of the same images was stopped."""
    store = ImageStore(images, *extractor.size, extractor.num_workers, device=extractor.device)
    record = Record(
        content=content_of(images),
        weights=extractor.sha256,
        h=extractor.size[0],
        w=extractor.size[1],
        flip=extractor.flip,
        precision=extractor.precision,
    )

    def load(start: int):
        return store.batches(in_order(len(images), extractor.batch_size, start))

    sides, folder = {"gallery": images}, common_folder([image.path for image in images])
    extract_file(path, extractor.model, load, sides, record, extractor.device, folder=folder)


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
