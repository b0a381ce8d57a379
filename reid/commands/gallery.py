"""python -m reid gallery create|add|remove|search|info|check|copy: descriptors that can be searched."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from reid.commands.extract import extract_to, open_extractor
from reid.commands.flags import add_flags, add_gallery_flags, add_images_flags, check_counts, given_flags
from reid.data.images import list_images, read_images
from reid.data.labels import Labels
from reid.data.loader import in_order
from reid.errors import InputError, MissingInput
from reid.evaluation.pooling import POOLS, pool
from reid.evaluation.record import read_record
from reid.evaluation.store import read_h5, read_labels
from reid.files import write_csv
from reid.gallery.address import address_of, create_gallery, find_gallery, folder_of, open_gallery, work_file
from reid.gallery.milvus import INDEXES
from reid.gallery.picture import draw_answers, kind_of, save_picture
from reid.gallery.recall import TOP, recall
from reid.gallery.store import Answers, Entries, Fingerprint, Listing, Only, Store, check_features, check_names
from reid.inference.describe import extract
from reid.inference.extractor import Extractor
from reid.processes import connected

logger = logging.getLogger(__name__)

CSV_COLUMNS = ("query", "rank", "gallery", "distance", "identity", "camera", "source")
COPY = "copy a gallery to another store, without extracting again"
DTYPE = "type of the features in a file (default float32)"
INDEX = "index of a Milvus collection (default FLAT, which is exact)"
LOOKED_AT = 1000  # entries whose images are looked for


def add_arguments(parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)

    def action(run: Callable, what: str, name: str = ""):
        added = actions.add_parser(name or run.__name__, help=what, description=what)
        added.set_defaults(run=run)
        add_gallery_flags(added)
        return added

    for name in ("create", "add"):
        sub = action(put, f"{name} entries from --weights and --images, or from a --features file", name)
        add_images_flags(sub, required=False)
        sub.add_argument(
            "--features", dest="features_file", help="read the gallery of a .h5 written by extract or evaluate.py"
        )
        sub.add_argument("--root", help="folder of the images that --features names (default: as the file says)")
        if name == "create":
            sub.add_argument("--dtype", choices=("float32", "float16"), default="", help=DTYPE)
            sub.add_argument("--index", choices=INDEXES, default="", help=INDEX)
        add_flags(sub, "gallery")
    sub = action(remove, "remove entries by name or by identity")
    sub.add_argument("--names", nargs="+", default=[], help="remove these names, as search prints them")
    sub.add_argument("--pids", nargs="+", default=[], help="remove the entries of these identities, by their labels")
    sub = action(search, "find the nearest entries of one or more images")
    add_images_flags(sub)
    sub.add_argument("--top", type=int, default=10, metavar="N", help="list at most N answers (default 10)")
    sub.add_argument(
        "--multi_query",
        choices=("none", *POOLS),
        default="none",
        help="search once, with the mean or maximum of all --images",
    )
    sub.add_argument("--threshold", type=float, default=np.inf, help="largest squared distance, as in evaluate.py")
    sub.add_argument("--pids", nargs="+", default=[], help="search only these identities, by their labels")
    sub.add_argument("--camids", nargs="+", default=[], help="search only these cameras, by their labels")
    sub.add_argument("--picture", metavar="FILE", help="draw queries and answers (.png, .jpg)")
    sub.add_argument("--csv", metavar="FILE", help="also write the answers as CSV")
    sub.add_argument("--root", help="look for the entries' images here (default: the gallery's folder)")
    add_flags(sub, "gallery", needs_weights=True)
    action(info, "print the content of a gallery")
    sub = action(check, "check that every descriptor can be read and has length 1")
    sub.add_argument("--recall", type=int, default=0, metavar="N", help="recall of N entries against exact search")
    copied = actions.add_parser("copy", help=COPY, description=COPY)
    copied.set_defaults(run=copy)
    copied.add_argument("gallery", help="source: a file, or milvus:URI#COLLECTION")
    copied.add_argument("target", help="the same; where it exists, only missing names are added")
    copied.add_argument("--dtype", choices=("float32", "float16"), default="", help=DTYPE)
    copied.add_argument("--index", choices=INDEXES, default="", help=INDEX)


def main(arguments) -> int:
    arguments.gallery = address_of(arguments.gallery, getattr(arguments, "store", None))
    return arguments.run(arguments)


def put(a) -> int:
    """Creates a gallery or adds to one."""
    weights = given_flags(a).get("pretrained_weights_dir")
    if bool(a.features_file) == bool(a.images) or bool(a.images) != bool(weights):
        raise InputError("give either --weights and --images, or --features")
    if a.root and not a.features_file:
        raise InputError("--root is for --features: images that are read are found already")
    if a.images:
        return put_images(a)
    gallery = gallery_for(a)
    mark, entries = from_features(a, folder_of(a.gallery))
    if gallery is None:
        gallery = create_gallery(a.gallery, mark, entries, a.dtype, a.index)
    else:
        gallery.add(mark, entries)
    print(f"{len(entries.names)} added; {a.gallery} has {len(gallery)} entries")
    return 0


def gallery_for(a, continues: bool = False) -> Store | None:
    """The gallery to add to; None for one to create. continues: an interrupted command may have created it."""
    if a.action == "add":
        return open_gallery(a.gallery)
    gallery = find_gallery(a.gallery)
    if gallery is not None and not continues:
        raise InputError(f"{a.gallery} already exists; use gallery add")
    return gallery


def put_images(a) -> int:
    """Extracts into a file beside the gallery, then adds. Interrupted, the same command continues either.

    Under torchrun each process extracts its part, and rank 0 adds.
    """
    images, labels = list_images(a.images)
    extractor = open_extractor(a, len(images))
    mark, folder, work = fingerprint(extractor), folder_of(a.gallery), work_file(a.gallery)
    with connected(extractor.device) as here:
        continues = work.exists()
        gallery = gallery_for(a, continues) if here.first else None
        if gallery is not None:  # check before the long work
            gallery.refuse_other(mark)
            names = [beside(i.path, folder) for i in images]
            check_names(names, () if continues else gallery.present(names))
        found = read_images(images, extractor.size, extractor.num_workers, extractor.device, a.skip_bad)
        extract_to(work, extractor, found, labels)
    if here.first:
        names = [beside(image.path, folder) for image in found.images]
        places = np.array([(image.pid, image.camid) for image in found.images], np.int64)
        with h5py.File(work, "r") as f:
            put_missing(a, a.gallery, gallery, mark, Entries(f["features"], names, places[:, 0], places[:, 1], labels))
        work.unlink()
    return 0


def put_missing(a, address: str, gallery: Store | None, mark: Fingerprint, entries: Entries) -> None:
    """Creates a gallery, or adds the entries whose names it does not have."""
    if gallery is None:
        gallery = create_gallery(address, mark, entries, a.dtype, a.index)
        count = len(entries.names)
    else:
        gallery.refuse_other(mark)
        present = gallery.present(entries.names)
        missing = entries.select(np.array([name not in present for name in entries.names], bool))
        count = len(missing.names)
        if count:
            gallery.add(mark, missing)
    already = f", {len(entries.names) - count} were there already" if count < len(entries.names) else ""
    print(f"{count} added{already}; {address} has {len(gallery)} entries")


def copy(a) -> int:
    source, target = open_gallery(a.gallery), find_gallery(a.target)
    if target is not None and (a.dtype or a.index):
        raise InputError(f"{a.target} exists already; --dtype and --index are for a new gallery")
    with source.entries() as entries:
        put_missing(a, a.target, target, source.fingerprint, entries)
    return 0


def check(a) -> int:
    """Reads every descriptor. Raises InputError for a damaged one."""
    if a.recall < 0:
        raise InputError(f"--recall {a.recall}: expected a number of queries")
    gallery = open_gallery(a.gallery)
    with gallery.entries() as entries:
        check_features(entries, gallery.width)
        print(f"{len(entries.names)} entries are sound; index: {gallery.info()['index']}")
        if a.recall:
            found = recall(gallery, entries, a.recall)
            print(f"recall@{TOP} against exact search: {found:.4f} ({a.recall} entries as queries)")
    return 0


def beside(image: str, folder: Path) -> str:
    """A path relative to the gallery's folder."""
    return Path(os.path.relpath(image, folder)).as_posix()


def fingerprint(extractor: Extractor) -> Fingerprint:
    return Fingerprint(extractor.sha256, f"{extractor.size[0]}x{extractor.size[1]}", extractor.flip)


def from_features(a, target: Path) -> tuple[Fingerprint, Entries]:
    """The gallery side of a features.h5, for a gallery in the folder `target`. Raises MissingInput, InputError."""
    path = Path(a.features_file)
    if not path.is_file():
        raise MissingInput(f"features file {path} does not exist; python -m reid extract writes one")
    try:
        sides, attrs = read_h5(path)
        record, labels = read_record(path), read_labels(path)
        if record.weights is None:
            raise ValueError("its weights are unknown")
        mark = Fingerprint(record.weights, f"{record.h}x{record.w}", bool(record.flip))
    except (OSError, KeyError, ValueError, TypeError) as e:
        raise InputError(f"{path} is damaged, or not a features.h5 of this project: {e}; extract it again") from e
    features, pids, camids, names = sides["gallery"]
    original = [labels.source(name) for name in names]
    if folder := a.root or attrs.get("folder"):  # extract writes it; evaluate.py's names are relative to a dataset
        names = [beside(os.path.join(folder, name), target) for name in names]
    if not any((target / name).is_file() for name in names[:LOOKED_AT]):
        if a.root:
            raise InputError(f"--root {a.root}: the images of {path} are not there, as {os.path.basename(names[0])}")
        place = f"datasets/{record.dataset}/images" if record.dataset else "FOLDER"
        logger.warning(f"the images of {path} are not found, so search --picture cannot show them; add --root {place}")
    if labels.given:
        labels = Labels(labels.identities, labels.cameras, dict(zip(names, original)))
    camids = np.full(len(names), -1) if camids is None else camids
    return mark, Entries(features, names, pids, camids, labels)


def remove(a) -> int:
    if not a.names and not a.pids:
        raise InputError("give --names or --pids of the entries to remove")
    if unknown := {"", "-1"} & {*a.pids}:
        label = unknown.pop() or '""'
        raise InputError(f"--pids {label}: entries without identity have none; remove them by --names")
    gallery = open_gallery(a.gallery)
    names, identities = set(a.names), set(a.pids)

    def chosen(listing: Listing) -> np.ndarray:
        if absent := [*names - set(listing.names), *identities - set(listing.identities)]:
            raise InputError(f"{gallery.address} has no {', '.join(sorted(absent))}; nothing was removed")
        rows = zip(listing.names, listing.identities)
        return np.array([name in names or identity in identities for name, identity in rows], bool)

    print(f"{gallery.remove(chosen)} removed; {gallery.address} has {len(gallery)} entries")
    return 0


def search(a) -> int:
    check_counts(a, "top")
    if not a.threshold >= 0:
        raise InputError(f"--threshold {a.threshold}: expected a squared distance from 0 to 4")
    if a.picture:
        kind_of(Path(a.picture))
    gallery = open_gallery(a.gallery)
    images = list_images(a.images).images
    extractor = open_extractor(a, len(images))
    gallery.refuse_other(fingerprint(extractor))
    read = read_images(images, extractor.size, extractor.num_workers, extractor.device, a.skip_bad)
    titles = queries = [image.path for image in read.images]
    batches = read.store.batches(in_order(len(queries), extractor.batch_size))
    features = extract(extractor.engine, batches, len(queries))
    if a.multi_query != "none":
        features = pool(features, a.multi_query)[None]
        titles = [f"{a.multi_query} of {len(queries)} images: {', '.join(queries)}"]
    found = gallery.search(features, a.top, a.threshold, Only(a.pids, a.camids))
    for title, answers in zip(titles, found):
        print(f"{title}\n{as_text(answers)}")
        if not answers.names:
            print(f"  no entry within {a.threshold:g}")
    if a.csv:
        write_csv(Path(a.csv), CSV_COLUMNS, csv_rows(titles, found))
    if a.picture:
        root = Path(a.root) if a.root else folder_of(a.gallery)
        picture, missing = draw_answers(queries, found, root)
        save_picture(picture, Path(a.picture))
        if missing:
            logger.warning(f"{missing} images of the answers are not in {root} and are grey; --root names their folder")
        print(f"picture in {a.picture}")
    return 0


def as_text(answers: Answers) -> str:
    """A line for each answer. The user's own name of an image follows its path where they differ."""
    rows = [("rank", "distance", "identity", "camera", "name")]
    for i, (distance, name, identity, camera, source) in enumerate(zip(*answers[1:]), 1):
        own = f"  ({printable(source)})" if source != name else ""
        known = (printable(identity) or "-", printable(camera) or "-")
        rows.append((str(i), f"{distance:.4f}", *known, printable(name) + own))
    widths = [max(least, *(2 + len(row[i]) for row in rows)) for i, least in enumerate((6, 10, 8, 7))]
    lines = ("".join(f"{cell:>{width}}" for cell, width in zip(row, widths)) + f"  {row[-1]}" for row in rows)
    return "\n".join(lines)


def printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


def csv_rows(queries: Sequence[str], found: Sequence[Answers]) -> Iterator[tuple]:
    """CSV_COLUMNS of each answer."""
    for query, answers in zip(queries, found):
        for i, (distance, name, *rest) in enumerate(zip(*answers[1:]), 1):
            yield (query, i, name, f"{distance:.6g}", *rest)


def info(a) -> int:
    gallery = open_gallery(a.gallery)
    names, identities, cameras = gallery.listing()
    rows = {
        "entries": f"{len(names):,}",
        "identities known": f"{len(set(identities) - {''}):,}",
        "cameras known": len(set(cameras) - {""}),
        **gallery.info(),
        "weights SHA-256": gallery.fingerprint.weights,
        "input size": gallery.fingerprint.size,
        "mirror image": "yes" if gallery.fingerprint.flip else "no",
    }
    print("\n".join(f"{k:<18}{v}" for k, v in rows.items()))
    return 0
