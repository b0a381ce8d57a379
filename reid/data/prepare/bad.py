"""Images of a source that cannot be decoded."""

import logging
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from reid.data.loader import in_threads, open_image
from reid.data.prepare.archive import MAX_IMAGE, Source
from reid.errors import InputError

logger = logging.getLogger(__name__)

THREADS = 4


def unreadable(source: Source, names: Iterable[str], skip_bad: bool = False) -> set[str]:
    """The names of the images that cannot be decoded; logs each of them with its problem.

    Raises InputError when there are any and skip_bad is not given.
    """
    unique = sorted({*names}, key=lambda name: source.offsets.get(name, 0))  # a compressed tar is read forwards
    results = in_threads(problem_of, contents(source, unique), THREADS)
    bad: set[str] = set()
    for name, problem in tqdm(results, "reading", len(unique), unit=" images", disable=None):
        if problem:
            logger.warning(f"{name} {problem}")
            bad.add(name)
    if bad and not skip_bad:
        raise InputError(
            f"{source.path}: {len(bad):,} of {len(unique):,} images cannot be read (listed above); nothing was "
            "written. Repair them, or leave them out with --skip_bad"
        )
    return bad


def contents(source: Source, names: Iterable[str]) -> Iterator[tuple[str, bytes | InputError]]:
    for name in names:
        try:
            if (size := source.sizes[name]) > MAX_IMAGE:
                raise InputError(f"has {size:,} bytes, too many for a cropped image")
            yield name, source.read(name)
        except InputError as e:
            yield name, e


def problem_of(item: tuple[str, bytes | InputError]) -> tuple[str, str]:
    """(name, why the image cannot be used or "")."""
    name, content = item
    if isinstance(content, InputError):
        return name, f"cannot be read: {content}"
    try:
        open_image(content)
    except InputError as e:
        return name, str(e)
    return name, ""
