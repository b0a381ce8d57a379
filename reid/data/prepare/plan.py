"""What a source holds: rows with the user's labels, and a Plan of numbered images with counts."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from reid.data.folders import left_out
from reid.data.labels import Labels
from reid.data.messages import shortened
from reid.data.prepare.archive import Source
from reid.data.published import GT_BBOX, PUBLISHED, Counts, differences
from reid.data.records import SUBSETS
from reid.errors import InputError

JUNK = "-1"  # label of images that show no identity
ImageRow = tuple[str, int, int]  # (name in the source, pid, camera from 0)
Place = Callable[[dict[str, list[Path]]], None]  # brings each named image to the given paths


class Row(NamedTuple):
    """One image with the user's labels."""

    name: str  # in the source
    pid: str
    camera: str | None = None
    sequence: str | None = None
    subset: str | None = None  # one of subsets.KINDS

    def __str__(self) -> str:
        values = {"identity": self.pid, "camera": self.camera, "sequence": self.sequence, "subset": self.subset}
        return f"{self.name} -> " + ", ".join(f"{k} {v!r}" for k, v in values.items() if v is not None)


@dataclass
class Rows:
    """The images of a source, the files that are not images, and {reason: images that are left out}."""

    rows: list[Row]
    source: Source
    ignored: list[str] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)


@dataclass
class Split:
    """Positions in Plan.images by subset. All images of an identity in trainval belong to trainval."""

    trainval: list[int] = field(default_factory=list)
    query: list[int] = field(default_factory=list)
    gallery: list[int] = field(default_factory=list)
    multi_query: list[int] = field(default_factory=list)  # further images of the queries

    @property
    def subsets(self) -> dict[str, list[int]]:
        return {subset: getattr(self, subset) for subset in SUBSETS}


@dataclass
class Plan:
    """The images of a source and their subsets."""

    images: list[ImageRow]
    splits: list[Split]
    num_cameras: int
    dropped: Counter = field(default_factory=Counter)  # {reason: images}
    ignored: list[str] = field(default_factory=list)  # files that are not images
    labels: Labels = field(default_factory=Labels)
    prepared: dict[str, Any] = field(default_factory=dict)  # what the dataset is made from
    boxes: int = 0  # images of gt_bbox, of which multi_query is a part
    extra: int = 0  # gallery images beyond the published ones
    note: str = ""  # what is special about the test lists; becomes part of the protocol
    tracks: dict[str, str] = field(default_factory=dict)  # of gallery images, by name in the source
    place: Place | None = None  # for images that are not files of the source

    def add(self, rows: Iterable[ImageRow]) -> list[int]:
        """Adds images and returns their positions."""
        first = len(self.images)
        self.images += rows
        return list(range(first, len(self.images)))

    def counts(self, split: int = 0) -> Counts:
        """The counts of one split, and of "all" where there are several splits."""
        rows = self.splits[split].subsets
        if len(self.splits) > 1:
            rows = {"all": list(range(len(self.images))), **rows}
        return {s: (len({self.images[i][1] for i in some}), len(some)) for s, some in rows.items()}


def table(name: str, plan: Plan) -> str:
    """Counts of the plan beside the published ones."""
    published = PUBLISHED.get(name, {})
    lines = [f"{name:<24}{'identities':>10}{'published':>11}{'images':>11}{'published':>11}"]
    for subset, (pids, images) in plan.counts().items():
        known = ["" if n is None else f"{n:,}" for n in published.get(subset, (None, None))]
        lines.append(f"{subset:<24}{pids:>10,}{known[0]:>11}{images:>11,}{known[1]:>11}")
    if len(plan.splits) > 1:
        lines.append(f"{len(plan.splits)} splits; the table shows the first")
    lines += [f"dropped: {count:,} {reason}" for reason, count in plan.dropped.items()]
    if plan.note:
        lines.append(f"note: {plan.note}")
    if plan.ignored:
        lines.append(f"ignored, not images: {left_out(plan.ignored)}")
    return "\n".join(lines)


def assert_sound(name: str, plan: Plan, source: Path) -> None:
    """Raises InputError for identities in training and test, or other counts than published."""
    if plan.boxes and plan.boxes != GT_BBOX.get(name, plan.boxes):
        raise InputError(
            f"{source}: gt_bbox has {plan.boxes:,} images; published: {GT_BBOX[name]:,}; restore or remove it"
        )
    for number, split in enumerate(plan.splits):
        train, test = ({plan.images[i][1] for i in some} for some in (split.trainval, split.query + split.gallery))
        if both := shortened([plan.labels.identity(pid) for pid in sorted(train & test)]):
            raise InputError(
                f"{source}: pids in both training and test: {both}; remove them from one, or rename them if they are "
                "different identities"
            )
        counts = plan.counts(number)
        pids, images = counts["gallery"]
        counts["gallery"] = (pids, images - plan.extra)
        for difference in differences(name, counts):
            raise InputError(f"{source}: {difference}; the source is incomplete, changed, or another dataset")
