"""python -m reid gallery create|add|remove|search|info: descriptors that can be searched."""

import os
from pathlib import Path

import numpy as np

from reid.commands.extract import open_extractor
from reid.commands.flags import add_flags, add_images_flags, given_flags
from reid.data.images import find_images, read_images
from reid.data.loader import in_order
from reid.errors import InputError, MissingInput
from reid.evaluation.record import read_record
from reid.evaluation.store import read_h5
from reid.gallery.hdf5 import Entries, Fingerprint, Gallery, check_names
from reid.gallery.picture import draw_answers, kind_of, save_picture
from reid.inference.describe import extract
from reid.inference.extractor import Extractor


def add_arguments(parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)

    def action(name: str, what: str):
        added = actions.add_parser(name, help=what, description=what)
        added.add_argument("gallery", help="gallery file (.h5)")
        return added

    for name in ("create", "add"):
        sub = action(name, f"{name} entries from --weights and --images, or from a --features file")
        add_images_flags(sub, required=False)
        sub.add_argument(
            "--features", dest="features_file", help="read the gallery of a .h5 written by extract or evaluate.py"
        )
        if name == "create":
            sub.add_argument(
                "--dtype", choices=("float32", "float16"), default="float32", help="store this type (default float32)"
            )
        add_flags(sub, "gallery")
    sub = action("remove", "remove entries by name or by identity")
    sub.add_argument("--names", nargs="+", default=[], help="remove these names, as search prints them")
    sub.add_argument("--pids", nargs="+", type=int, default=[], help="remove the entries of these identities")
    sub = action("search", "find the nearest entries of one or more images")
    sub.add_argument("--images", required=True, nargs="+", help="search for these images")
    sub.add_argument("--top", type=int, default=10, metavar="N", help="list at most N answers (default 10)")
    sub.add_argument("--threshold", type=float, default=np.inf, help="largest squared distance, as in evaluate.py")
    sub.add_argument("--picture", metavar="FILE", help="draw queries and answers (.png, .jpg)")
    sub.add_argument("--root", help="look for the entries' images here (default: the gallery's folder)")
    sub.add_argument("--no_flip", action="store_true", help="do not average with mirror images")
    add_flags(sub, "gallery", needs_weights=True)
    action("info", "print the content of a gallery")


def main(arguments) -> int:
    return {"create": put, "add": put, "remove": remove, "search": search, "info": info}[arguments.action](arguments)


def put(a) -> int:
    """Creates a gallery or adds to one."""
    path = Path(a.gallery)
    gallery = Gallery(path) if a.action == "add" else None
    if gallery is None and path.exists():
        raise InputError(f"{path} already exists; use gallery add")
    weights = given_flags(a).get("pretrained_weights_dir")
    if bool(a.features_file) == bool(a.images) or bool(a.images) != bool(weights):
        raise InputError("give either --weights and --images, or --features")
    mark, entries = from_features(Path(a.features_file), path) if a.features_file else from_images(a, path, gallery)
    if gallery is None:
        gallery = Gallery.create(path, mark, entries, a.dtype)
    else:
        gallery.add(mark, entries)
    print(f"{len(entries.names)} added; {path} has {len(gallery)} entries")
    return 0


def from_images(a, path: Path, gallery: Gallery | None) -> tuple[Fingerprint, Entries]:
    """(fingerprint, entries) of --images for the gallery at `path`. gallery: None for a new one."""
    images = find_images(a.images)
    extractor = open_extractor(a, len(images))
    mark = fingerprint(extractor)
    if gallery is not None:  # check before the long work
        gallery.refuse_other(mark)
        check_names([beside(i.path, path) for i in images], gallery.labels()[0])
    found = read_images(images, extractor.size, extractor.num_workers, extractor.device, a.skip_bad)
    batches = found.store.batches(in_order(len(found.images), extractor.batch_size))
    features = extract(extractor.engine, batches, len(found.images))
    names = [beside(image.path, path) for image in found.images]
    labels = np.array([(image.pid, image.camid) for image in found.images], np.int64)
    return mark, Entries(features, names, labels[:, 0], labels[:, 1])


def beside(image: str, gallery: Path) -> str:
    """A path relative to the gallery's folder."""
    return Path(os.path.relpath(image, gallery.parent)).as_posix()


def fingerprint(extractor: Extractor) -> Fingerprint:
    return Fingerprint(extractor.sha256, f"{extractor.size[0]}x{extractor.size[1]}", extractor.flip)


def from_features(path: Path, target: Path) -> tuple[Fingerprint, Entries]:
    """The gallery side of a features.h5, for the gallery `target`. Raises MissingInput, InputError."""
    if not path.is_file():
        raise MissingInput(f"features file {path} does not exist; python -m reid extract writes one")
    try:
        sides, attrs = read_h5(path)
        record = read_record(path)
        if record.weights is None:
            raise ValueError("its weights are unknown")
        mark = Fingerprint(record.weights, f"{record.h}x{record.w}", bool(record.flip))
    except (OSError, KeyError, ValueError, TypeError) as e:
        raise InputError(f"{path} is damaged, or not a features.h5 of this project: {e}; extract it again") from e
    features, pids, camids, names = sides["gallery"]
    if folder := attrs.get("folder"):  # extract writes it; evaluate.py's names are relative to a dataset
        names = [beside(os.path.join(folder, name), target) for name in names]
    return mark, Entries(features, names, pids, np.full(len(names), -1) if camids is None else camids)


def remove(a) -> int:
    if not a.names and not a.pids:
        raise InputError("give --names or --pids of the entries to remove")
    if min(a.pids, default=0) < 0:
        raise InputError(f"--pids {min(a.pids)}: entries without identity have none; remove them by --names")
    gallery = Gallery(a.gallery)

    def chosen(names: list[str], pids: np.ndarray) -> np.ndarray:
        absent = [str(x) for x in [*set(a.names) - set(names), *set(a.pids) - set(pids.tolist())]]
        if absent:
            raise InputError(f"{gallery.path} has no {', '.join(sorted(absent))}; nothing was removed")
        return np.isin(pids, a.pids) | np.array([n in a.names for n in names], bool)

    print(f"{gallery.remove(chosen)} removed; {gallery.path} has {len(gallery)} entries")
    return 0


def search(a) -> int:
    if a.top < 1:
        raise InputError(f"--top {a.top} is too small; the minimum is 1")
    if not a.threshold >= 0:
        raise InputError(f"--threshold {a.threshold}: expected a squared distance from 0 to 4")
    if a.picture:
        kind_of(Path(a.picture))
    gallery = Gallery(a.gallery)
    extractor = open_extractor(a, len(a.images))
    gallery.refuse_other(fingerprint(extractor))
    found = gallery.search(extractor(a.images), a.top, a.threshold)
    for image, answers in zip(a.images, found):
        print(f"{image}\n{'rank':>6}{'distance':>10}{'pid':>8}{'camid':>7}  name")
        for i, (distance, name, pid, camid) in enumerate(zip(*answers[1:]), 1):
            known = ["-" if x < 0 else x for x in (pid, camid)]
            print(f"{i:>6}{distance:>10.4f}{known[0]:>8}{known[1]:>7}  {name if name.isprintable() else repr(name)}")
        if not answers.names:
            print(f"  no entry within {a.threshold:g}")
    if a.picture:
        root = Path(a.root) if a.root else gallery.path.parent
        save_picture(draw_answers(a.images, found, root), Path(a.picture))
        print(f"picture in {a.picture}")
    return 0


def info(a) -> int:
    gallery = Gallery(a.gallery)
    names, pids, camids = gallery.labels()
    with gallery.open() as f:
        dtype = f["features"].dtype
    rows = {
        "entries": f"{len(names):,}",
        "identities known": f"{len(set(pids[pids >= 0].tolist())):,}",
        "cameras known": len(set(camids[camids >= 0].tolist())),
        "features": f"{gallery.width} {dtype}",
        "file": f"{gallery.path.stat().st_size / 2**20:,.1f} MiB",
        "weights SHA-256": gallery.fingerprint.weights,
        "input size": gallery.fingerprint.size,
        "mirror image": "yes" if gallery.fingerprint.flip else "no",
    }
    print("\n".join(f"{k:<18}{v}" for k, v in rows.items()))
    return 0
