"""Which files of a folder are images: the same rule for every command."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath

from PIL import features

from reid.data.messages import shortened
from reid.errors import InputError

logger = logging.getLogger(__name__)

PLAIN = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
OPTIONAL = {".webp": "webp", ".avif": "avif"}  # suffix -> the part of Pillow that reads it
HEIF = (".heic", ".heif")  # read by the package pillow-heif


def has_heif() -> bool:
    """Whether pillow-heif is installed; registers it with Pillow."""
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def readable() -> tuple[str, ...]:
    """The suffixes of images that the installed Pillow reads."""
    found = [suffix for suffix, part in OPTIONAL.items() if part in features.modules and features.check_module(part)]
    return (*PLAIN, *found, *(HEIF if has_heif() else ()))


IMAGES = readable()
NOT_HERE = tuple(suffix for suffix in (*OPTIONAL, *HEIF) if suffix not in IMAGES)


def is_image(name: str) -> bool:
    """Whether a file's name has the suffix of an image, in any letter case."""
    return name.lower().endswith(IMAGES)


def is_hidden(name: str) -> bool:
    """Whether a part of a relative path is hidden, or holds the metadata of macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def files_below(folder: Path) -> dict[str, int]:
    """{name: bytes} of the files below a folder, sorted by name, with '/' between the parts.

    Links are followed. A link to a folder that contains it is left out, as are hidden files; the log
    names both. Of a broken link the bytes are 0. Raises InputError for a folder that cannot be read.
    """
    found: dict[str, int] = {}
    hidden: list[str] = []
    walk(folder, "", (), found, hidden)
    log_hidden(folder, hidden)
    return dict(sorted(found.items()))


def walk(folder: Path, prefix: str, above: tuple[str, ...], found: dict[str, int], hidden: list[str]) -> None:
    """Adds the files below a folder to `found` and `hidden`. above: the real folders around it."""
    real = os.path.realpath(folder)
    if real in above:
        logger.warning(f"{folder} is a link to a folder that contains it; it is left out")
        return
    try:
        with os.scandir(folder) as entries:
            inside = list(entries)
    except OSError as e:
        raise InputError(f"folder {folder} cannot be read: {e}; change its rights, or move it away") from e
    for entry in inside:
        name = prefix + entry.name
        if is_hidden(entry.name):
            hidden.append(name)
        elif entry.is_dir():
            walk(Path(entry.path), name + "/", (*above, real), found, hidden)
        elif entry.is_file():
            found[name] = entry.stat().st_size
        elif entry.is_symlink():
            found[name] = 0


def log_hidden(source: Path, names: Iterable[str]) -> None:
    """One line about hidden images, which no command reads."""
    if images := sorted(filter(is_image, names)):
        logger.info(
            f"{source}: {len(images):,} hidden images are left out (names that begin with '.'): {shortened(images, 3)}"
        )


def left_out(names: Sequence[str]) -> str:
    """'12 files: 10 .txt (a.txt, ...), 2 .heic (...)', and how to read images that are among them."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in names:
        kinds[PurePosixPath(name).suffix.lower() or "without suffix"].append(name)
    ordered = sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))
    text = ", ".join(f"{len(some):,} {suffix} ({', '.join(some[:3])})" for suffix, some in ordered)
    if unread := [suffix for suffix in kinds if suffix in NOT_HERE]:
        text += f". {', '.join(unread)}: this Pillow does not read them; {repair(unread)}"
    return text


def repair(suffixes: Iterable[str]) -> str:
    """How to make images with these suffixes readable."""
    package = "pillow-heif" if set(suffixes) & set(HEIF) else "--upgrade pillow"
    return f"pip install {package}, or convert them to JPEG"
