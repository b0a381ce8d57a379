"""A user's own images: where they are, how to read their labels, and which of them can be decoded."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reid.data.loader import in_threads, open_image, report_bad
from reid.data.prepare.archive import MAX_IMAGE, Source, joined, open_source
from reid.data.prepare.layouts import LAYOUTS, rows_of_folders
from reid.data.prepare.lists import LISTS, rows_of_list
from reid.data.prepare.plan import Rows
from reid.data.prepare.split import Drawing
from reid.data.prepare.write import made_from, without_prepared
from reid.errors import InputError

PARTS = ("train", "query", "gallery")
THREADS = 4


@dataclass(frozen=True, kw_only=True)
class OwnImages:
    """Where the images are, how to read their names, and how to make the split."""

    source: Path | None = None  # a folder, an archive or a list; or instead of it:
    train: Path | None = None  # one folder for each subset
    query: Path | None = None
    gallery: Path | None = None
    template: str = ""
    layout: str = ""  # "market", or "" for folders, lists and templates
    drawing: Drawing = field(default_factory=Drawing)
    skip_bad: bool = False  # leave out images that cannot be decoded

    def __post_init__(self):
        share = self.drawing.test_share
        if share is not None and not 0 < share < 1:
            raise InputError(f"--test_share {share} is not between 0 and 1")
        if bool(self.parts) == bool(self.source):
            raise InputError("give either --source, or the folders --train, --query and --gallery")
        if len({path.resolve() for path in self.parts.values()}) < len(self.parts):
            raise InputError("--train, --query and --gallery need different folders; one was given twice")
        if self.layout and self.template:
            raise InputError(f"--layout {self.layout} and --template both say what the names mean; give one of them")
        if self.layout not in ("", *LAYOUTS):
            raise InputError(f"--layout {self.layout} is unknown; known are {', '.join(LAYOUTS)}")
        for flag in ("template", "layout"):
            if self.is_list and getattr(self, flag):
                raise InputError(f"--{flag} is for folders and archives; a list contains the identities itself")

    @property
    def parts(self) -> dict[str, Path]:
        """The folders of --train, --query and --gallery that were given."""
        return {part: path for part in PARTS if (path := getattr(self, part))}

    @property
    def is_list(self) -> bool:
        return bool(self.source and self.source.suffix.lower() in LISTS and self.source.is_file())

    def description(self, rows: Rows) -> dict[str, Any]:
        """What a dataset of these rows is made from."""
        paths = [self.source] if self.source else self.parts.values()
        name = " + ".join(path.resolve().name for path in paths)
        how = {"template": self.template, "layout": self.layout, **vars(self.drawing)}
        return made_from(name, rows.source, rows.rows) | how


@contextmanager
def read(images: OwnImages, folder: Path) -> Iterator[Rows]:
    """The rows of the images, while their source is open. folder: of the prepared dataset."""
    if images.source and images.is_list:
        yield rows_of_list(images.source)
    elif images.source:
        with open_source(images.source) as source:
            yield rows_of_folders(without_prepared(source, folder), images.template, images.layout)
    else:
        yield rows_of_folders(joined(images.parts), images.template, images.layout, nested=False)


def unreadable(source: Source, names: Iterable[str], skip_bad: bool = False) -> set[str]:
    """The names of the images that cannot be decoded, as report_bad reports them. Raises InputError."""
    ordered = source.in_order(dict.fromkeys(names))
    results = in_threads(problem_of, contents(source, ordered), THREADS)
    problems = tqdm(results, "reading", len(ordered), unit=" images", disable=None)
    bad = {name: f"{source.path}: {name} {problem}" for name, problem in zip(ordered, problems) if problem}
    report_bad([*bad.values()], len(ordered), skip_bad)
    return {*bad}


def contents(source: Source, names: Iterable[str]) -> Iterator[bytes | InputError]:
    """The content of each file, or why it cannot be read."""
    for name in names:
        try:
            if (size := source.sizes[name]) > MAX_IMAGE:
                raise InputError(f"it has {size:,} bytes, too many for a cropped image")
            yield source.read(name)
        except InputError as e:
            yield e


def problem_of(content: bytes | InputError) -> str:
    """Why an image cannot be used, or ""."""
    if isinstance(content, InputError):
        return f"cannot be read: {content}"
    try:
        open_image(content)
    except InputError as e:
        return str(e)
    return ""
