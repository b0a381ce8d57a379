"""Writes a plan as a dataset folder, whole or not at all; a folder that exists is reused or refused."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from reid.data.messages import indented
from reid.data.prepare.archive import Source
from reid.data.prepare.plan import Place, Plan
from reid.data.read import read_json
from reid.errors import InputError
from reid.files import atomic_file

logger = logging.getLogger(__name__)

FILES = ("images", "splits.json", "test.json", "meta.json")


def write(name: str, plan: Plan, folder: Path, place: Place) -> None:
    """Fills `folder`: images named {pid:08d}_{camera:04d}_{number:08d}, and the JSON files.

    meta.json is written last: a folder that has it is complete.
    """
    (folder / "images").mkdir(parents=True)
    pids = 1 + max(pid for _, pid, _ in plan.images)
    identities: list[list[list[str]]] = [[[] for _ in range(plan.num_cameras)] for _ in range(pids)]
    wanted: dict[str, list[Path]] = defaultdict(list)
    rows: list[tuple[str, int, int]] = []  # (file, pid, camera)
    for original, pid, camid in plan.images:
        files = identities[pid][camid]
        file = f"{pid:08d}_{camid:04d}_{len(files):08d}{PurePosixPath(original).suffix.lower()}"
        files.append(file)
        rows.append((file, pid, camid))
        wanted[original].append(folder / "images" / file)
    place(wanted)

    splits, tests = [], []
    for split in plan.splits:
        splits.append({s: sorted({rows[i][1] for i in some}) for s, some in split.subsets.items()})
        lists = {"query": split.query, "gallery": split.gallery, "multi_query": split.multi_query}
        tests.append({s: [rows[i] for i in some] for s, some in lists.items() if some or s != "multi_query"})
    distractors = {*splits[0]["gallery"]} - {*splits[0]["query"]} if len(splits) == 1 else ()
    labels = {"identities": list(plan.labels.identities), "cameras": list(plan.labels.cameras)}
    optional = {
        "note": plan.note,
        "tracks": {row[0]: plan.tracks[i[0]] for row, i in zip(rows, plan.images) if i[0] in plan.tracks},
        "labels": labels if plan.labels.identities else {},
    }
    meta = {
        "name": name,
        "shot": "multiple",
        "num_cameras": plan.num_cameras,
        "distractors": sorted(distractors),
        **{key: value for key, value in optional.items() if value},
        "prepared": plan.prepared,
        "identities": identities,
        "sources": {row[0]: image[0] for row, image in zip(rows, plan.images, strict=True)},
    }
    for file, content in zip(FILES[1:], (splits, tests, meta)):
        with atomic_file(folder / file) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")


def build(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes `folder` from what fill(temporary folder) writes; a failure leaves nothing behind.

    An existing folder (raw data) gets images/ and the JSON files beside its content. Temporary
    folders that killed processes left more than a day ago are removed.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stale in folder.parent.glob(f".{folder.name}.partial-*"):
            if time.time() - stale.stat().st_mtime > 86_400:
                shutil.rmtree(stale, ignore_errors=True)
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
    for name in FILES:
        os.rename(temporary / name, folder / name)


def made_from(name: str, source: Source, rows: Sequence[tuple]) -> dict[str, Any]:
    """What a dataset is made from: a source, and a digest of its rows (image, labels ..) with their sizes."""
    lines = sorted("\t".join(map(str, (*row, source.sizes.get(row[0], "")))) for row in rows)
    content = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return {"source": name, "images": len(rows), "content": content}


def without_prepared(source: Source, folder: Path) -> Source:
    """The source without the files of the dataset, where raw data lie in the folder of the dataset."""
    if source.path.resolve() != folder.resolve() or not (folder / "meta.json").exists():
        return source
    return replace(source, sizes={name: n for name, n in source.sizes.items() if name.partition("/")[0] not in FILES})


def is_prepared(folder: Path, now: dict[str, Any]) -> bool:
    """Whether `folder` is already prepared from what `now` describes; logs that it is.

    Raises InputError, which shows both, if it was prepared from something else.
    """
    if not (folder / "meta.json").exists():
        return False
    then = read_json(folder / "meta.json", dict).get("prepared") or {}
    if not then:
        logger.warning(
            f"{folder} is already prepared, and does not record from what; delete it to prepare it from {now['source']}"
        )
        return True
    changed = [key for key, value in now.items() if then.get(key) != value]
    if changed and changed != ["source"]:  # the same images and labels may be at another place
        lines = [f"{key}: {shown(then.get(key))} then, {shown(now[key])} now" for key in changed]
        raise InputError(
            f"{folder} was prepared from something else; choose another --name, or delete {folder} to prepare it "
            f"again:{indented(lines)}"
        )
    logger.info(f"{folder} is already prepared from the same source; delete it to prepare it again")
    return True


def shown(value: Any) -> str:
    return "nothing" if value in (None, "") else repr(value) if isinstance(value, str) else str(value)
