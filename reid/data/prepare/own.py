"""A user's own images: where they are, and how to read their labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reid.data.prepare.again import digest, without_prepared
from reid.data.prepare.archive import joined, open_source
from reid.data.prepare.layouts import LAYOUTS, rows_of_folders
from reid.data.prepare.lists import LISTS, rows_of_list
from reid.data.prepare.rows import Rows
from reid.data.prepare.split import Drawing
from reid.errors import InputError

PARTS = ("train", "query", "gallery")


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

    @property
    def name(self) -> str:
        """The name of the source, without the folders around it."""
        paths = [self.source] if self.source else self.parts.values()
        return " + ".join(Path(path).resolve().name for path in paths if path)


@contextmanager
def read(images: OwnImages, folder: Path) -> Iterator[Rows]:
    """The rows of the images, while their source is open. folder: of the prepared dataset."""
    if images.is_list and images.source:
        yield rows_of_list(images.source)
    elif images.source:
        with open_source(images.source) as source:
            yield rows_of_folders(without_prepared(source, folder), images.template, images.layout)
    else:
        yield rows_of_folders(joined(images.parts), images.template, images.layout, nested=False)


def description(images: OwnImages, rows: Rows) -> dict[str, Any]:
    """What a dataset is made from: the settings, and a digest of names, sizes and labels."""
    return {
        "source": images.name,
        "images": len(rows.rows),
        "content": digest((*row, rows.source.sizes[row.name]) for row in rows.rows),
        "template": images.template,
        "layout": images.layout,
        "test_share": images.drawing.test_share,
        "seed": images.drawing.seed,
        "test_only": images.drawing.test_only,
    }
