"""Preparing a dataset again: the same is left alone, and other data are refused."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reid.data.messages import indented
from reid.data.prepare.archive import Source
from reid.data.prepare.plan import Plan
from reid.data.read import read_json
from reid.errors import InputError

logger = logging.getLogger(__name__)


def digest(rows: Iterable[Sequence]) -> str:
    """The first 16 digits of the SHA-256 over sorted rows of values."""
    lines = sorted("\t".join(map(str, row)) for row in rows)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def of_plan(source: Source, plan: Plan) -> dict[str, Any]:
    """What a known dataset is made from."""
    content = digest((*image, source.sizes.get(image[0], "")) for image in plan.images)
    return {"source": source.path.resolve().name, "images": len(plan.images), "content": content}


def without_prepared(source: Source, folder: Path) -> Source:
    """The source without the files of the dataset, where raw data lie in the folder of the dataset."""
    if source.path.resolve() != folder.resolve() or not (folder / "meta.json").exists():
        return source
    own = ("images/", "meta.json", "splits.json", "test.json")
    return replace(source, sizes={name: size for name, size in source.sizes.items() if not name.startswith(own)})


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
