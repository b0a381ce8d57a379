"""Writes a plan as a dataset folder, whole or not at all."""

import json
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from reid.data.prepare.plan import Place, Plan
from reid.data.records import SUBSETS
from reid.errors import InputError
from reid.files import atomic_file


def write(name: str, plan: Plan, folder: Path, place: Place) -> None:
    """Fills `folder`: images named {pid:08d}_{camera:04d}_{number:08d}, and the JSON files.

    meta.json is written last: a folder that has it is complete.
    """
    (folder / "images").mkdir(parents=True)
    pids = 1 + max(pid for _, pid, _ in plan.images)
    identities: list[list[list[str]]] = [[[] for _ in range(plan.num_cameras)] for _ in range(pids)]
    wanted: dict[str, list[Path]] = defaultdict(list)
    rows: list[tuple[str, int, int]] = []  # (file, pid, camera)
    seen: Counter = Counter()
    for original, pid, camid in plan.images:
        number = seen[pid, camid]
        seen[pid, camid] += 1
        file = f"{pid:08d}_{camid:04d}_{number:08d}{PurePosixPath(original).suffix.lower()}"
        rows.append((file, pid, camid))
        identities[pid][camid].append(file)
        wanted[original].append(folder / "images" / file)
    place(wanted)

    tests = [{s: [rows[i] for i in split.subsets[s]] for s in SUBSETS[1:]} for split in plan.splits]
    for test, split in zip(tests, plan.splits):
        if split.multi_query:
            test["multi_query"] = [rows[i] for i in split.multi_query]
    splits = []
    for split in plan.splits:
        splits.append({s: sorted({rows[i][1] for i in some}) for s, some in split.subsets.items()})
    meta: dict[str, Any] = {"name": name, "shot": "multiple", "num_cameras": plan.num_cameras, "distractors": []}
    if len(splits) == 1:
        meta["distractors"] = sorted(set(splits[0]["gallery"]) - set(splits[0]["query"]))
    if plan.note:
        meta["note"] = plan.note
    if plan.tracks:
        meta["tracks"] = {row[0]: plan.tracks[i[0]] for row, i in zip(rows, plan.images) if i[0] in plan.tracks}
    if plan.labels.identities:
        meta["labels"] = {"identities": list(plan.labels.identities), "cameras": list(plan.labels.cameras)}
    meta["prepared"] = plan.prepared
    meta["identities"] = identities
    meta["sources"] = {row[0]: image[0] for row, image in zip(rows, plan.images, strict=True)}
    for file, content in (("splits.json", splits), ("test.json", tests), ("meta.json", meta)):
        with atomic_file(folder / file) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


def build(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes `folder` from what fill(temporary folder) writes; a failure leaves nothing behind.

    An existing folder (raw data) gets images/ and the JSON files beside its content.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(folder)
        temporary = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
        try:
            fill(temporary)
            move(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as e:
        raise InputError(f"cannot write {folder}: {e}") from e


def move(temporary: Path, folder: Path) -> None:
    """Makes `temporary` the dataset `folder`; does nothing if another process was faster."""
    try:
        os.rename(temporary, folder)
        return
    except OSError:  # Windows replaces no folder, POSIX only an empty one
        if not folder.is_dir():
            raise
    if (folder / "meta.json").exists():
        return
    if (folder / "images").exists():
        raise InputError(f"{folder} has images/ but no meta.json: an unfinished dataset or other data; move it away")
    for name in ("images", "splits.json", "test.json", "meta.json"):
        os.rename(temporary / name, folder / name)


def remove_stale(folder: Path) -> None:
    """Removes temporary folders that killed processes left more than a day ago."""
    for stale in folder.parent.glob(f".{folder.name}.partial-*"):
        if time.time() - stale.stat().st_mtime > 86_400:
            shutil.rmtree(stale, ignore_errors=True)
