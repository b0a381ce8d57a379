"""A user's own images: one folder an identity, names after a template, or a CSV or JSON list."""

import csv
import io
import json
import random
import re
import string
from collections import defaultdict
from pathlib import Path, PurePosixPath

from reid.data.prepare.archive import IMAGES, Source, open_files
from reid.data.prepare.market import refuse_unreadable
from reid.data.prepare.plan import Plan, Split
from reid.data.records import read_json
from reid.errors import InputError

LISTS = (".csv", ".tsv", ".json")
JUNK = "-1"
MOST_PID = 100_000  # whole numbers below it are kept as pids; other labels are numbered
NO_CAMERAS = "no cameras were given: each query counts as camera 0 and the gallery as camera 1"
Row = tuple[str, str, str | None]  # (name of the image, label of the identity, label of the camera)


def rows_of_source(source: Source, template: str) -> tuple[list[Row], list[str]]:
    """(rows, files that are no images) of a folder or archive.

    template: matched to the file name, or with '/' in it to the path; {pid}, {cam} and {} (anything) stand for text
    without '/'. Without a template the first folder of a path is the identity.
    """
    names = [name for name in source.sizes if name.lower().endswith(IMAGES)]
    ignored = [name for name in source.sizes if not name.lower().endswith(IMAGES)]
    top = {PurePosixPath(name).parts[0] for name in names}
    wrapped = len(top) == 1 and all(len(PurePosixPath(name).parts) > 2 for name in names)
    pattern = as_pattern(template) if template else None
    rows: list[Row] = []
    unreadable = []
    for name in names:
        path = PurePosixPath(*PurePosixPath(name).parts[wrapped:])
        if pattern is None:
            rows.append((name, path.parts[0], None))
            if len(path.parts) < 2:
                unreadable.append(name)
        elif match := pattern.fullmatch(str(path) if "/" in template else path.name):
            rows.append((name, match["pid"], match.groupdict().get("cam")))
        else:
            unreadable.append(name)
    hint = "" if template else " (or give --template, for example '{pid}_c{cam}_{}.jpg')"
    refuse_unreadable(source, unreadable, f"{template or '<identity>/<image>'}{hint}")
    return rows, ignored


def as_pattern(template: str) -> re.Pattern:
    """'{pid}_c{cam}_{}.jpg' as a regular expression."""
    pattern, fields = "", []
    try:
        for text, field, *_ in string.Formatter().parse(template):
            pattern += re.escape(text)
            if field is not None:
                fields.append(field)
                pattern += f"(?P<{field}>[^/]+?)" if field else "[^/]*?"
        named = sorted(f for f in fields if f)
        if named not in (["pid"], ["cam", "pid"]):
            raise ValueError(f"its fields are {', '.join(named) or 'none'}")
        return re.compile(pattern, re.IGNORECASE)
    except (ValueError, re.error) as e:
        raise InputError(f"--template {template!r}: {e}; use {{pid}} once, {{cam}} at most once and {{}} for any text, "
                         "for example '{pid}_c{cam}_{}.jpg'") from e  # fmt: skip


def rows_of_list(path: Path) -> list[Row]:
    """Rows of a CSV file with the columns path, pid and maybe camid, or of a JSON list of such objects.

    Paths are relative to the file's folder, or absolute. Raises InputError naming the bad lines.
    """
    if path.suffix.lower() == ".json":
        entries = [(f"entry {i}", entry) for i, entry in enumerate(read_json(path, list))]
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
            delimiter = max(",;\t", key=text.partition("\n")[0].count)
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            entries = [(f"line {reader.line_num}", entry) for entry in reader]
        except (OSError, UnicodeDecodeError, csv.Error) as e:
            raise InputError(f"{path} cannot be read as CSV: {e}; save it as UTF-8") from e
    rows: list[Row] = []
    problems: list[str] = []
    for where, entry in entries:
        values = entry if isinstance(entry, dict) else {}
        name, pid, camera = (
            str(values.get(k, "") if values.get(k) is not None else "") for k in ("path", "pid", "camid")
        )
        if not name or not pid:
            problems.append(f"{where}: {json.dumps(entry, default=str):.100} has no path or no pid")
        elif not (path.parent / name).is_file():
            problems.append(f"{where}: {path.parent / name} is not there")
        else:
            rows.append((name, pid, camera or None))
    if problems or not rows:
        more = f"\n  ... and {len(problems) - 20:,} more" if len(problems) > 20 else ""
        raise InputError(
            f"{path}: {len(problems):,} of {len(entries):,} entries cannot be used; expected path, pid and maybe "
            f"camid, with paths relative to {path.parent}\n  " + "\n  ".join(problems[:20]) + more
        )
    return rows


def source_of_list(path: Path, rows: list[Row]) -> Source:
    """The listed files as a source."""
    sizes = {name: (path.parent / name).stat().st_size for name, _, _ in rows}
    return Source(path.parent, sizes, lambda names: open_files(path.parent, names))


def plan(rows: list[Row], test_share: float, seed: int) -> tuple[Plan, str]:
    """The plan, and in words what was understood, with three example lines.

    About test_share of the identities, drawn from those with a possible match, make the test. Each camera that has
    two images of one gives a query, so what stays in the gallery always has a match from another camera.
    """
    kept = [row for row in rows if row[1] != JUNK]
    bare = [row[0] for row in kept if row[2] is None]
    if bare and len(bare) < len(kept):
        raise InputError(f"{len(bare):,} of {len(kept):,} images have no camera, the first: {bare[0]}; give all of "
                         "them one, or none")  # fmt: skip
    pids = numbered({row[1] for row in kept}, keep=True)
    cameras = {} if bare else numbered({row[2] or "" for row in kept}, keep=False)
    camids = [cameras.get(row[2] or "", 0) for row in kept]
    places: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))  # pid -> camera -> rows
    for i, (row, camid) in enumerate(zip(kept, camids, strict=True)):
        places[pids[row[1]]][camid].append(i)

    able = [pid for pid in sorted(places) if len(places[pid] if cameras else places[pid][0]) > 1]
    count = min(max(round(test_share * len(places)), 1), len(able), len(places) - 2)
    if count < 1:
        raise InputError(
            f"{len(places)} identities, {len(able)} of them with images from two {'cameras' if cameras else 'files'}: "
            "too few for training and test, which need 3 identities, one of them with a match"
            + ("; without cameras (no camid, no {cam}) two images are a match" if cameras else "")
        )
    rng = random.Random(seed)
    test, split = set(rng.sample(able, count)), Split()
    for pid, by_camera in sorted(places.items()):
        everything = sorted(i for some in by_camera.values() for i in some)
        if pid in test:
            queries = draw_queries(by_camera, rng)
            split.query += queries
            split.gallery += [i for i in everything if i not in queries]
        else:
            split.trainval += everything
    for i in split.gallery if not cameras else ():
        camids[i] = 1
    images = [(name, pids[pid], camid) for (name, pid, _), camid in zip(kept, camids, strict=True)]
    note = f"split drawn with seed {seed}" + ("" if cameras else f"; {NO_CAMERAS}")
    result = Plan(images, [split], len(cameras) or 2, note=note)
    if len(kept) < len(rows):
        result.dropped["junk (identity -1)"] = len(rows) - len(kept)
    return result, understood(kept, pids, cameras)


def numbered(labels: set[str], keep: bool) -> dict[str, int]:
    """A number for each label, in order. keep: labels that are small whole numbers stay what they are."""
    whole = all(label.isdecimal() for label in labels)
    if whole and keep and max(map(int, labels)) < MOST_PID:
        return {label: int(label) for label in labels}
    values = {label: int(label) if whole else label for label in labels}
    order = {value: n for n, value in enumerate(sorted(set(values.values())))}
    return {label: order[value] for label, value in values.items()}


def draw_queries(by_camera: dict[int, list[int]], rng: random.Random) -> list[int]:
    """One row of each camera that keeps another; where no camera has two, one row of one camera."""
    several = [rows for rows in by_camera.values() if len(rows) > 1]
    return [rng.choice(rows) for rows in several or [rng.choice(list(by_camera.values()))]]


def understood(rows: list[Row], pids: dict[str, int], cameras: dict[str, int]) -> str:
    shown = sorted(cameras, key=cameras.__getitem__)
    names = (
        f"{len(shown)} cameras ({', '.join(shown[:8])}{', ...' if len(shown) > 8 else ''})" if cameras else NO_CAMERAS
    )
    lines = [f"understood: {len(rows):,} images of {len(set(pids.values())):,} identities; {names}"]
    for name, pid, camera in (rows[0], rows[len(rows) // 2], rows[-1]):
        seen = f", camera {camera!r} = {cameras[camera]}" if camera is not None else ""
        lines.append(f"  {name} -> identity {pid!r} = pid {pids[pid]}{seen}")
    return "\n".join(lines)
