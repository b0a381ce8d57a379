"""One image with the labels that the user gave, and all images of a source."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from reid.data.prepare.archive import Source

JUNK = "-1"  # label of images that show no identity


class Row(NamedTuple):
    """One image with the user's labels."""

    name: str  # in the source
    pid: str
    camera: str | None = None
    sequence: str | None = None
    subset: str | None = None  # one of subsets.KINDS


@dataclass
class Rows:
    """The images of a source.

    ignored: files that are not images. dropped: {reason: images that are left out}.
    """

    rows: list[Row]
    source: Source
    ignored: list[str] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)
