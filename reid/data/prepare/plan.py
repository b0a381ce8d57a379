"""From what a source holds (a Plan) to a dataset folder: counts against the published ones, then images and JSON."""

import json
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from reid.data.records import SUBSETS, shortened
from reid.errors import InputError
from reid.files import atomic_file

CLASSIC = {"trainval": (1_367, None), "query": (100, None), "gallery": (100, None)}
# (identities, images) of each subset as published; None where they differ between the 20 splits of a classic set
PUBLISHED: dict[str, dict[str, tuple[int, int | None]]] = {
    "market1501": {"trainval": (751, 12_936), "query": (750, 3_368), "gallery": (751, 15_913)},
    "dukemtmc": {"trainval": (702, 16_522), "query": (702, 2_228), "gallery": (1_110, 17_661)},
    "occluded_duke": {"trainval": (702, 15_618), "query": (519, 2_210), "gallery": (1_110, 17_661)},
    "cuhk03": {"trainval": (767, 7_368), "query": (700, 1_400), "gallery": (700, 5_328)},
    "cuhk03_detected": {"trainval": (767, 7_365), "query": (700, 1_400), "gallery": (700, 5_332)},
    "cuhk03_classic": {"all": (1_467, 14_096), **CLASSIC},
    "cuhk03_classic_detected": {"all": (1_467, 14_097), **CLASSIC},
    "msmt17_v1": {"trainval": (1_041, 32_621), "query": (3_060, 11_659), "gallery": (3_060, 82_161)},
    "msmt17_v2": {"trainval": (1_041, 32_621), "query": (3_060, 11_659), "gallery": (3_060, 82_161)},
}
ENLARGED = "gallery enlarged by"  # how the note of a set with more distractors begins

Place = Callable[[dict[str, list[Path]]], None]  # brings each named image to the given paths


@dataclass
class Split:
    """Rows of Plan.images by subset. All images of an identity in trainval belong to trainval."""

    trainval: list[int] = field(default_factory=list)
    query: list[int] = field(default_factory=list)
    gallery: list[int] = field(default_factory=list)


@dataclass
class Plan:
    """What a source holds: (name in the source, pid, 0-based camera) of each image, and who is in which subset."""

    images: list[tuple[str, int, int]]
    splits: list[Split]
    num_cameras: int
    dropped: Counter = field(default_factory=Counter)  # reason -> images
    ignored: list[str] = field(default_factory=list)  # files that are no images
    extra: int = 0  # gallery images beyond the published ones
    note: str = ""  # what is special about the test lists; becomes part of the protocol
    place: Place | None = None  # how images get to their paths where they are no files of the source

    def counts(self, split: int = 0) -> dict[str, tuple[int, int]]:
        """{subset: (identities, images)}, and "all" where there are several splits."""
        rows = {"all": range(len(self.images))} if len(self.splits) > 1 else {}
        rows |= {s: getattr(self.splits[split], s) for s in SUBSETS}
        return {s: (len({self.images[i][1] for i in rows[s]}), len(rows[s])) for s in rows}


def table(name: str, plan: Plan) -> str:
    """Counts of the plan beside the published ones."""
    published = PUBLISHED.get(name, {})
    lines = [f"{name:<24}{'identities':>10}{'published':>11}{'images':>11}{'published':>11}"]
    for subset, (ids, images) in plan.counts().items():
        known = ["" if n is None else f"{n:,}" for n in published.get(subset, (None, None))]
        lines.append(f"{subset:<24}{ids:>10,}{known[0]:>11}{images:>11,}{known[1]:>11}")
    if len(plan.splits) > 1:
        lines.append(f"{len(plan.splits)} splits; the table shows the first")
    lines += [f"dropped: {count:,} {reason}" for reason, count in plan.dropped.items()]
    if plan.note:
        lines.append(f"note: {plan.note}")
    if plan.ignored:
        more = f", ... ({len(plan.ignored):,} in all)" if len(plan.ignored) > 10 else ""
        lines.append(f"ignored, no images: {', '.join(plan.ignored[:10])}{more}")
    return "\n".join(lines)


def assert_sound(name: str, plan: Plan, source: Path) -> None:
    """Raises InputError when training and test share an identity, or counts are not the published ones."""
    for number, split in enumerate(plan.splits):
        both = {plan.images[i][1] for i in split.trainval} & {plan.images[i][1] for i in split.query + split.gallery}
        if both:
            raise InputError(f"{source}: {shortened(sorted(both))} are both in training and test; an identity belongs "
                             "to one of them")  # fmt: skip
        found = plan.counts(number)
        for subset, (ids, images) in PUBLISHED.get(name, {}).items():
            extra = plan.extra if subset == "gallery" else 0
            if found[subset][0] != ids or images not in (None, found[subset][1] - extra):
                raise InputError(
                    f"{source}: {subset} has {found[subset][0]:,} identities and {found[subset][1] - extra:,} images, "
                    f"published are {ids:,}{'' if images is None else f' and {images:,}'}; the source is incomplete, "
                    "changed, or another dataset"
                )


def write(name: str, plan: Plan, folder: Path, place: Place) -> None:
    """Fills `folder`: images named {pid:08d}_{camera:04d}_{index:08d}, then splits.json, test.json, meta.json.

    meta.json comes last: with it a dataset is whole.
    """
    files: list[str] = []
    seen: Counter = Counter()
    wanted: dict[str, list[Path]] = defaultdict(list)
    identities: list[list[list[str]]] = [
        [[] for _ in range(plan.num_cameras)] for _ in range(1 + max(pid for _, pid, _ in plan.images))
    ]
    (folder / "images").mkdir(parents=True)
    for original, pid, camid in plan.images:
        file = f"{pid:08d}_{camid:04d}_{seen[pid, camid]:08d}{PurePosixPath(original).suffix.lower()}"
        seen[pid, camid] += 1
        files.append(file)
        identities[pid][camid].append(file)
        wanted[original].append(folder / "images" / file)
    place(wanted)

    rows = [[file, pid, camid] for file, (_, pid, camid) in zip(files, plan.images, strict=True)]
    tests = [{s: [rows[i] for i in getattr(split, s)] for s in SUBSETS[1:]} for split in plan.splits]
    splits = [{s: sorted({plan.images[i][1] for i in getattr(split, s)}) for s in SUBSETS} for split in plan.splits]
    distractors = sorted(set(splits[0]["gallery"]) - set(splits[0]["query"])) if len(splits) == 1 else []
    meta = {"name": name, "shot": "multiple", "num_cameras": plan.num_cameras, "distractors": distractors}
    meta |= {"note": plan.note} if plan.note else {}
    meta |= {"identities": identities, "sources": {f: row[0] for f, row in zip(files, plan.images, strict=True)}}
    for file, content in (("splits.json", splits), ("test.json", tests), ("meta.json", meta)):
        with atomic_file(folder / file) as temporary:
            temporary.write_text(json.dumps(content))


def build(folder: Path, fill: Callable[[Path], None]) -> None:
    """fill(temporary folder), which then becomes `folder`; nothing is left behind when it fails.

    A folder that is there already (raw data) gets images/ and the JSON files beside what it holds, meta.json last.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(folder)
        temporary = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
        try:
            fill(temporary)
            if not folder.exists():
                os.rename(temporary, folder)
            elif not (folder / "meta.json").exists():  # else another process was faster
                if (folder / "images").exists():
                    raise InputError(f"{folder} has images/ but no meta.json: an unfinished dataset or something "
                                     "else; move it away")  # fmt: skip
                for name in ("images", "splits.json", "test.json", "meta.json"):
                    if (temporary / name).exists():
                        os.rename(temporary / name, folder / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as e:
        raise InputError(f"cannot write {folder}: {e}") from e


def remove_stale(folder: Path) -> None:
    """Removes what processes killed on another day left half done."""
    for stale in folder.parent.glob(f".{folder.name}.partial-*"):
        if time.time() - stale.stat().st_mtime > 86_400:
            shutil.rmtree(stale, ignore_errors=True)
