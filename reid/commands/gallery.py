"""python -m reid gallery create|add|remove|search|info: the commands around gallery.py, and the picture of answers."""

import os
from pathlib import Path

import numpy as np

from reid.commands.extract import add_extractor_flags, add_images_flags, make_extractor
from reid.data.images import find_images, readable
from reid.data.loader import ImageStore, in_order
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
        added.add_argument("gallery", help="the gallery's file (.h5)")
        return added

    for name in ("create", "add"):
        sub = action(name, f"{name} from --weights and --images, or from a --features file of extract")
        add_images_flags(sub, required=False)
        sub.add_argument("--features", help="a .h5 that extract or evaluate.py wrote (its gallery)")
        if name == "create":
            sub.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of what is stored")
    sub = action("remove", "take entries out by name or by identity")
    sub.add_argument("--names", nargs="+", default=[], help="as search and info print them")
    sub.add_argument("--pids", nargs="+", type=int, default=[])
    sub = action("search", "the nearest entries of one or more images")
    sub.add_argument("--weights", required=True, help="those of the gallery")
    sub.add_argument("--image", nargs="+", required=True, help="query images")
    sub.add_argument("--top", type=int, default=10, metavar="N", help="answers at most (default 10)")
    sub.add_argument("--threshold", type=float, default=np.inf, help="largest squared distance (as evaluate.py's)")
    sub.add_argument("--picture", metavar="FILE", help="queries and answers as a picture (.png, .jpg)")
    sub.add_argument("--root", help="folder of the entries' names (default: the gallery's folder)")
    add_extractor_flags(sub)
    action("info", "what a gallery holds")


def main(arguments) -> int:
    return {"create": put, "add": put, "remove": remove, "search": search, "info": info}[arguments.action](arguments)


def put(a) -> int:
    """create or add."""
    path = Path(a.gallery)
    gallery = Gallery(path) if a.action == "add" else None
    if gallery is None and path.exists():
        raise InputError(f"{path} is already there; gallery add adds to it")
    if bool(a.features) == bool(a.images) or bool(a.images) != bool(a.weights):
        raise InputError("give either --weights and --images, or --features")
    if a.features:
        mark, entries = from_features(Path(a.features), path)
    else:
        images = find_images(a.images)
        extractor = make_extractor(a.weights, a)
        mark = fingerprint(extractor)
        if gallery is not None:  # before the long work
            gallery.refuse_other(mark)
            check_names([beside(i.path, path) for i in images], gallery.labels()[0])
        images = readable(images, extractor.size, a.num_workers, a.skip_bad)
        names = [beside(i.path, path) for i in images]
        store = ImageStore(images, *extractor.size, extractor.num_workers, device=extractor.device)
        batches = store.batches(in_order(len(images), extractor.batch_size))
        features = extract(extractor.model, batches, len(images), extractor.device, extractor.flip, extractor.precision)
        labels = np.array([(i.pid, i.camid) for i in images], np.int64)
        entries = Entries(features, names, labels[:, 0], labels[:, 1])
    if gallery is None:
        gallery = Gallery.create(path, mark, entries, a.dtype)
    else:
        gallery.add(mark, entries)
    print(f"{len(entries.names)} added; {path} holds {len(gallery)}")
    return 0


def beside(image: str, gallery: Path) -> str:
    """A path relative to the gallery's folder."""
    return Path(os.path.relpath(image, gallery.parent)).as_posix()


def fingerprint(extractor: Extractor) -> Fingerprint:
    return Fingerprint(extractor.sha256, f"{extractor.size[0]}x{extractor.size[1]}", extractor.flip)


def from_features(path: Path, target: Path) -> tuple[Fingerprint, Entries]:
    """The gallery side of a features.h5, for the gallery `target`. Raises MissingInput, InputError."""
    if not path.is_file():
        raise MissingInput(f"features file {path} is not there; python -m reid extract writes one")
    try:
        sides, attrs = read_h5(path)
        record = read_record(path)
        if record.weights is None:
            raise ValueError("its weights are unknown")
        mark = Fingerprint(record.weights, f"{record.h}x{record.w}", bool(record.flip))
    except (OSError, KeyError, ValueError, TypeError) as e:
        raise InputError(f"{path} is no features.h5 of this project, or damaged: {e}; extract it again") from e
    features, pids, camids, names = sides["gallery"]
    if folder := attrs.get("folder"):  # extract's say where the images are; evaluate.py's are relative to a dataset
        names = [beside(os.path.join(folder, name), target) for name in names]
    return mark, Entries(features, names, pids, np.full(len(names), -1) if camids is None else camids)


def remove(a) -> int:
    if not a.names and not a.pids:
        raise InputError("give --names or --pids of what is to be removed")
    if min(a.pids, default=0) < 0:
        raise InputError(f"--pids {min(a.pids)}: entries without identity have none; remove them by --names")
    gallery = Gallery(a.gallery)

    def chosen(names: list[str], pids: np.ndarray) -> np.ndarray:
        absent = [str(x) for x in [*set(a.names) - set(names), *set(a.pids) - set(pids.tolist())]]
        if absent:
            raise InputError(f"{gallery.path} has no {', '.join(sorted(absent))}; nothing was removed")
        return np.isin(pids, a.pids) | np.array([n in a.names for n in names], bool)

    print(f"{gallery.remove(chosen)} removed; {gallery.path} holds {len(gallery)}")
    return 0


def search(a) -> int:
    if a.top < 1:
        raise InputError(f"--top {a.top}: at least 1")
    if not a.threshold >= 0:
        raise InputError(f"--threshold {a.threshold}: a squared distance, 0 to 4")
    if a.picture:
        kind_of(Path(a.picture))
    gallery = Gallery(a.gallery)
    extractor = make_extractor(a.weights, a)
    gallery.refuse_other(fingerprint(extractor))
    found = gallery.search(extractor(a.image), a.top, a.threshold)
    for image, answers in zip(a.image, found):
        print(f"{image}\n{'rank':>6}{'distance':>10}{'pid':>8}{'camid':>7}  name")
        for i, (distance, name, pid, camid) in enumerate(zip(*answers[1:]), 1):
            known = ["-" if x < 0 else x for x in (pid, camid)]
            print(f"{i:>6}{distance:>10.4f}{known[0]:>8}{known[1]:>7}  {name if name.isprintable() else repr(name)}")
        if not answers.names:
            print(f"  no entry within {a.threshold:g}")
    if a.picture:
        root = Path(a.root) if a.root else gallery.path.parent
        save_picture(draw_answers(a.image, found, root), Path(a.picture))
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
