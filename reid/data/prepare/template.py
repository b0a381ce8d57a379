"""Forms of image names, such as '{pid}_c{cam}_{}.jpg'."""

import itertools
import re
import string
from dataclasses import dataclass
from pathlib import PurePosixPath

from reid.data.messages import indented
from reid.data.prepare.plan import Row
from reid.errors import InputError

FIELDS = {"pid": "pid", "cam": "camera", "seq": "sequence", "subset": "subset"}  # {field: field of Row}
USE = (
    "use {pid} once, {cam}, {seq} and {subset} at most once, {} for any text, and a width where nothing separates two "
    "fields, for example '{pid}_c{cam}_{}.jpg' or '{pid:4}{cam:3}{}.png'"
)


@dataclass(frozen=True)
class Template:
    """A form of names. Each piece is (what the user wrote, its regular expression)."""

    text: str
    pieces: tuple[tuple[str, str], ...]

    @property
    def with_folders(self) -> bool:
        """Whether it is matched against the path instead of the file name."""
        return "/" in self.text

    @property
    def with_subset(self) -> bool:
        return any(expression.startswith("(?P<subset>") for _, expression in self.pieces)

    def name_of(self, path: PurePosixPath) -> str:
        """The part of a path that it is matched against."""
        return str(path) if self.with_folders else path.name

    def first(self, count: int) -> re.Pattern:
        """The regular expression of the first pieces."""
        return re.compile("".join(expression for _, expression in self.pieces[:count]), re.IGNORECASE)

    def read(self, path: PurePosixPath) -> dict[str, str] | None:
        """The fields of a path, or None if it has another form."""
        match = self.first(len(self.pieces)).fullmatch(self.name_of(path))
        return match.groupdict() if match else None

    def explain(self, path: PurePosixPath) -> str:
        """How far a path fits."""
        fits = next(n for n in range(len(self.pieces), -1, -1) if self.first(n).match(self.name_of(path)))
        if fits == len(self.pieces):
            return "is longer than the template"
        start, piece = "".join(text for text, _ in self.pieces[:fits]), self.pieces[fits][0]
        return f"fits {start!r}, but {piece!r} does not follow" if start else f"does not begin with {piece!r}"


def as_template(text: str) -> Template:
    """The template of a text. Raises InputError for unknown fields, and for fields without a border.

    >>> as_template("{pid:4}{cam:3}.png").read(PurePosixPath("0012003.png"))
    {'pid': '0012', 'cam': '003'}
    """
    try:
        return Template(text, tuple(parse(text)))
    except ValueError as e:
        raise InputError(f"--template {text!r}: {e}; {USE}") from e


def parse(text: str) -> list[tuple[str, str]]:
    """The pieces of a template. Raises ValueError."""
    pieces: list[tuple[str, str]] = []
    fields: list[str | None] = []
    unbounded = ""  # the last field, if it has no width and no text follows
    for before, name, width, conversion in string.Formatter().parse(text):
        if before:
            pieces.append((before, re.escape(before)))
            unbounded = ""
        if name is None:
            continue
        written = "{" + name + (f"!{conversion}" if conversion else "") + (f":{width}" if width else "") + "}"
        if name not in ("", *FIELDS) or conversion or re.fullmatch(r"[1-9]\d?|", width or "") is None:
            raise ValueError(f"{written} is not a field")
        if name in fields:
            raise ValueError(f"{{{name}}} occurs twice")
        if unbounded and not width:
            raise ValueError(f"nothing shows where {unbounded} ends and {written} begins")
        count = f"{{{width}}}" if width else "+?" if name else "*?"
        pieces.append((written, f"(?P<{name}>[^/]{count})" if name else f"[^/]{count}"))
        unbounded = "" if width else written
        fields.append(name or None)
    if "pid" not in fields:
        raise ValueError("it has no {pid}")
    return pieces


def read_names(template: Template, paths: dict[str, PurePosixPath], where: str) -> list[Row]:
    """Rows of images by the path that the template is matched against.

    Folders around all images may be missing in the template. Raises InputError with the names
    of another form, beside three that were understood.
    """
    best: list[Row] = []
    rest = paths
    for skip in range(common_depth(list(paths.values())) + 1 if template.with_folders else 1):
        shorter = {name: PurePosixPath(*path.parts[skip:]) for name, path in paths.items()}
        fields = {name: template.read(path) for name, path in shorter.items()}
        rows = [Row(name, **{FIELDS[key]: v for key, v in found.items()}) for name, found in fields.items() if found]
        if len(rows) == len(paths):
            return rows
        if not skip or len(rows) > len(best):
            best, rest = rows, {name: path for name, path in shorter.items() if not fields[name]}
    lines = [f"{name} {template.explain(path)}" for name, path in rest.items()]
    raise InputError(
        f"{where}: {len(lines):,} image names are not of the form {template.text}; change the template, "
        f"or rename or remove the images:{indented(lines)}\nunderstood:{indented(best[:3]) or ' no name'}"
    )


def common_depth(paths: list[PurePosixPath]) -> int:
    """How many folders are around all paths."""
    levels = zip(*(path.parts[:-1] for path in paths))
    return sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, levels))
