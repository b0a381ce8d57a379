"""Reads a user's own images: one folder per identity, a name template, or a CSV or JSON list."""

import csv
import json
import os
import re
import string
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from reid.data.folders import IMAGES, is_image, left_out
from reid.data.messages import indented
from reid.data.prepare.archive import Source, in_folder
from reid.data.prepare.market import refuse_unreadable
from reid.data.read import read_json
from reid.errors import InputError

LISTS = (".csv", ".tsv", ".json")


@dataclass(frozen=True, kw_only=True)
class OwnImages:
    """Where the images are, how to read their names, and how to draw the split."""

    source: Path  # a folder, an archive or a list
    template: str = ""
    test_share: float = 0.5
    seed: int = 0
    skip_bad: bool = False  # leave out images that cannot be decoded

    def __post_init__(self):
        if not 0 < self.test_share < 1:
            raise InputError(f"--test_share {self.test_share} is not between 0 and 1")
        if self.is_list and self.template:
            raise InputError("--template is for folders and archives; a list contains the identities itself")

    @property
    def is_list(self) -> bool:
        return self.source.suffix.lower() in LISTS and self.source.is_file()


class Row(NamedTuple):
    """One image with the labels that the user gave."""

    name: str  # in the source
    pid: str
    camera: str | None = None


def read(images: OwnImages, opened: Source | None) -> tuple[list[Row], list[str], Source]:
    """(rows, files that are not images, source of the rows). `opened` is None for a list."""
    if opened is None:
        path = images.source
        rows = rows_of_list(path)
        sizes = {row.name: (path.parent / row.name).stat().st_size for row in rows}
        return rows, [], in_folder(path.parent, sizes)
    names = [name for name in opened.sizes if is_image(name)]
    ignored = [name for name in opened.sizes if not is_image(name)]
    if not names:
        found = f"; found {left_out(ignored)}" if ignored else ""
        raise InputError(f"{images.source} has no images ({', '.join(IMAGES)}){found}")
    return rows_of_names(opened, names, images.template), ignored, opened


def rows_of_names(source: Source, names: list[str], template: str) -> list[Row]:
    """Rows of the images of a folder or archive.

    template: matched against the file name, or against the path if it contains '/'.
    {pid}, {cam} and {} (anything) match text without '/'. Without a template the first
    folder of a path is the identity. A folder around all images is left out.
    """
    paths = {name: PurePosixPath(name) for name in names}
    top = {path.parts[0] for path in paths.values()}
    wrapped = len(top) == 1 and all(len(path.parts) > 2 for path in paths.values())
    if wrapped:
        paths = {name: PurePosixPath(*path.parts[1:]) for name, path in paths.items()}
    pattern = as_pattern(template) if template else None
    rows: list[Row] = []
    unreadable = []
    for name, path in paths.items():
        if pattern is None and len(path.parts) > 1:
            rows.append(Row(name, path.parts[0]))
        elif pattern and (match := pattern.fullmatch(str(path) if "/" in template else path.name)):
            rows.append(Row(name, match["pid"], match.groupdict().get("cam")))
        else:
            unreadable.append(name)
    hint = "" if template else " (or give --template, for example '{pid}_c{cam}_{}.jpg')"
    refuse_unreadable(source, unreadable, f"{template or '<identity>/<image>'}{hint}")
    return rows


def as_pattern(template: str) -> re.Pattern:
    """'{pid}_c{cam}_{}.jpg' as a regular expression."""
    pattern, fields = "", []
    try:
        for text, field, *_ in string.Formatter().parse(template):
            pattern += re.escape(text)
            if field is not None:
                fields.append(field)
                pattern += f"(?P<{field}>[^/]+?)" if field else "[^/]*?"
        named = sorted(filter(None, fields))
        if named not in (["pid"], ["cam", "pid"]):
            raise ValueError(f"its fields are {', '.join(named) or 'none'}")
        return re.compile(pattern, re.IGNORECASE)
    except (ValueError, re.error) as e:
        raise InputError(
            f"--template {template!r}: {e}; use {{pid}} once, {{cam}} at most once and {{}} for any text, "
            "for example '{pid}_c{cam}_{}.jpg'"
        ) from e


def rows_of_list(path: Path) -> list[Row]:
    """Rows of a CSV file, or of a JSON list of objects, with path, pid and optionally camid.

    Paths are absolute, or relative to the folder of the list. Raises InputError with the bad
    entries.
    """
    rows: list[Row] = []
    problems: list[str] = []
    entries = entries_of_list(path)
    for where, entry in entries:
        values = entry if isinstance(entry, dict) else {}
        found = (values.get(key) for key in ("path", "pid", "camid"))
        name, pid, camera = ("" if value is None else str(value) for value in found)
        if not name or not pid:
            problems.append(f"{where}: {json.dumps(entry, default=str):.100} has no path or no pid")
        elif not (path.parent / name).is_file():
            problems.append(f"{where}: {path.parent / name} does not exist")
        else:
            rows.append(Row(name.replace(os.sep, "/"), pid, camera or None))
    if problems or not rows:
        raise InputError(
            f"{path}: {len(problems):,} of {len(entries):,} entries cannot be used; expected path, pid and "
            f"optionally camid, with paths relative to {path.parent}{indented(problems)}"
        )
    return rows


def entries_of_list(path: Path) -> list[tuple[str, Any]]:
    """(line or entry number, content) of each entry."""
    if path.suffix.lower() == ".json":
        return [(f"entry {i}", entry) for i, entry in enumerate(read_json(path, list))]
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            return [(f"line {reader.line_num}", entry) for entry in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path} cannot be read as CSV: {e}; save it as UTF-8") from e
