"""Rows of a CSV file, or of a JSON list of objects."""

import csv
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from reid.data.messages import indented, shortened
from reid.data.prepare.archive import in_folder
from reid.data.prepare.plan import Row, Rows
from reid.data.prepare.subsets import SEEN, subset_of
from reid.data.read import read_json
from reid.errors import InputError

logger = logging.getLogger(__name__)

LISTS = (".csv", ".tsv", ".json")
# The usual name is first; it is used where a list has several names of one line. Case, blanks,
# '-' and '_' of a column do not matter.
COLUMNS = {
    "path": ("path", "file", "image", "filename", "filepath", "imagepath", "imagename", "imgpath", "img"),
    "pid": ("pid", "id", "identity", "label", "person", "personid", "vehicleid", "identityid"),
    "camid": ("camid", "cam", "camera", "cameraid"),
    "sequence": ("sequence", "seq", "sequenceid", "tracklet"),
    "subset": ("subset", "split", "set"),
}
EXPECTED = "path, pid and optionally camid, subset (train, val, query, gallery, test) and sequence"


def rows_of_list(path: Path) -> Rows:
    """The rows of a list. Paths are absolute, or relative to the folder of the list.

    A row that is repeated counts once. Raises InputError with the bad entries, for columns
    that are missing or not clear, and for an image with two identities.
    """
    entries = entries_of_list(path)
    columns = columns_of(path, entries)
    rows: dict[Row, None] = {}
    labels: dict[str, Row] = {}  # the first row of each image
    problems: list[str] = []
    for where, entry in entries:
        try:
            row = row_of(path.parent, entry, columns)
        except ValueError as e:
            problems.append(f"{where}: {e}")
            continue
        first = labels.setdefault(row.name, row)
        if first._replace(subset=row.subset) != row:
            problems.append(f"{where}: {row.name} has other labels in an earlier entry: {first}")
        rows[row] = None
    if problems or not rows:
        raise InputError(
            f"{path}: {len(problems):,} of {len(entries):,} entries cannot be used; expected {EXPECTED}, "
            f"with paths relative to {path.parent}{indented(problems)}"
        )
    sizes = {name: (path.parent / name).stat().st_size for name in labels}
    result = Rows(list(rows), in_folder(path.parent, sizes))
    if repeated := len(entries) - len(rows):
        result.dropped["rows that repeat another row"] = repeated
    return result


def columns_of(path: Path, entries: list[tuple[str, Any]]) -> dict[str, str]:
    """{column of COLUMNS: its name in the list}. Logs the columns that are not used."""
    seen = dict.fromkeys(str(key) for _, entry in entries if isinstance(entry, dict) for key in entry if key)
    usual = {name: re.sub(r"[\W_]+", "", name.lower()) for name in seen}
    found: dict[str, str] = {}
    for column, synonyms in COLUMNS.items():
        matching = [name for name in seen if usual[name] in synonyms]
        exact = [name for name in matching if usual[name] == column]
        if len(matching) > 1 and len(exact) != 1:
            raise InputError(f"{path}: the columns {', '.join(matching)} can all be the {column}; keep one of them")
        if matching:
            found[column] = (exact or matching)[0]
    columns = shortened(list(seen), 20) or "none"
    if missing := [column for column in ("path", "pid") if column not in found]:
        raise InputError(
            f"{path} has no column {' and no column '.join(missing)}; its columns are: {columns}. Expected {EXPECTED}"
        )
    if unused := [name for name in seen if name not in found.values()]:
        logger.warning(f"{path}: columns that are not used: {', '.join(unused)}")
    return found


def row_of(folder: Path, entry: Any, columns: dict[str, str]) -> Row:
    """The row of one entry. Raises ValueError."""
    found = {key: entry.get(name) for key, name in columns.items()} if isinstance(entry, dict) else {}
    texts = dict.fromkeys(COLUMNS, "") | {key: str(value) for key, value in found.items() if value is not None}
    path, pid, camid, sequence, subset = texts.values()
    if not path or not pid:
        raise ValueError(f"{json.dumps(entry, default=str):.100} has no path or no pid")
    if None in entry:
        raise ValueError(f"{path} has more values than there are columns")
    name = file_name(folder, path)
    if "subset" in columns and not subset_of(subset):
        raise ValueError(f"{path} has the {columns['subset']} {subset!r}; expected {SEEN}")
    return Row(name, pid, camid or None, sequence or None, subset_of(subset) or None)


def file_name(folder: Path, text: str) -> str:
    """The path of an image with '/', relative to `folder` or absolute. Raises ValueError if it does not exist."""
    for name in (text, text.replace("\\", "/")):  # lists that were written on Windows
        if (folder / name).is_file():
            normal = os.path.normpath(name)  # the same text for './a.jpg' and 'a.jpg'
            return (normal if (folder / normal).is_file() else name).replace(os.sep, "/")
    raise ValueError(f"{folder / text} does not exist")


def entries_of_list(path: Path) -> list[tuple[str, Any]]:
    """(line or entry number, content) of each entry."""
    if path.suffix.lower() == ".json":
        return [(f"entry {i}", entry) for i, entry in enumerate(read_json(path, list))]
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            file.seek(0)
            # 'path, pid' has blanks after the commas, which are not part of the values
            spaced = delimiter in first and all(part[:1] == " " for part in first.split(delimiter)[1:])
            reader = csv.DictReader(file, delimiter=delimiter, strict=True, skipinitialspace=spaced)
            return [(f"line {reader.line_num}", entry) for entry in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path} cannot be read as CSV: {e}; save it as UTF-8") from e
