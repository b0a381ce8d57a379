"""The record that identifies an evaluation, stored in result.json and features.h5.

Two evaluations are the same if their records are equal. Reuse, resumption, comparison and tables use
only the record, never a folder's name.
"""

import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import h5py

from reid.config import ENGINES, PRECISIONS, Config, check_known
from reid.errors import InputError, MissingInput

logger = logging.getLogger(__name__)

CHOICES: dict[str, tuple] = {f.name: f.metadata["choices"] for f in fields(Config)}
CHOICES |= {"precision": (*PRECISIONS, "int8", None), "engine": (*ENGINES[1:], None)}  # as resolved
# left out at these values, so that older records stay equal
LATER: dict[str, Any] = {"calibration": None, "multi_query": "none", "tracks": False}
EVALUATION_FILES = ("result.json", "features.h5", "features.h5.partial")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A base class that checks plain fields and reads and writes them as JSON."""

    def __post_init__(self):
        for f in fields(self):
            if choices := CHOICES.get(f.name):
                check_known(f.name, getattr(self, f.name), choices)

    def to_json(self) -> dict[str, Any]:
        """The fields by name; fields of LATER only with another value than the one there."""

        def plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
            return {k: v for k, v in items if k not in LATER or v != LATER[k]}

        return asdict(self, dict_factory=plain)

    @classmethod
    def from_json(cls, content: Any, source: str | Path) -> Self:
        """The inverse of to_json. Raises InputError, naming `source`, for other fields or types."""
        kinds: dict[str, Any] = {f.name: f.type for f in fields(cls)}
        later = {k: v for k, v in LATER.items() if k in kinds}
        again = "it is damaged or from another version; evaluate again"
        if not isinstance(content, dict) or content.keys() | later != kinds.keys():
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise InputError(f"{source}: expected a record with {', '.join(kinds)}, but found {found}; {again}")
        values = later | content
        if values.get("scoring") is not None:
            values["scoring"] = Scoring.from_json(values["scoring"], source)
        for name, value in values.items():
            wrong_bool = isinstance(value, bool) and "bool" not in str(kinds[name])
            if wrong_bool or not isinstance(value, kinds[name]):
                raise InputError(f"{source}: its record has {name} {value!r}; {again}")
        try:
            return cls(**values)
        except InputError as e:
            raise InputError(f"{source}: {e}; {again}") from e


@dataclass(frozen=True, kw_only=True)
class Scoring(Settings):
    """How features are scored; the conventions are described at Ranking, SingleGalleryShot and distances.blocks.

    rerank: k-reciprocal encoding. query_expansion: with how many neighbours, 0 for none. cameras: images of the
    query's identity and camera are junk; without cameras nothing is. multi_query: how the images of a query are
    pooled. tracks: rank the gallery's tracks, each at the distance of its nearest image.
    """

    ap: str = "step"
    cmc: str = "market1501"
    metric: str = "euclidean"
    rerank: bool = False
    query_expansion: int = 0
    cameras: bool = True
    multi_query: str = "none"
    tracks: bool = False

    @classmethod
    def of(cls, config: Config) -> "Scoring":
        same = {f.name: getattr(config, f.name) for f in fields(cls) if f.name != "cameras"}
        return cls(cameras=not config.no_cameras, **same)


@dataclass(frozen=True, kw_only=True)
class Record(Settings):
    """The identity of an evaluation. Unknown fields are None, for example for other systems' features.

    fingerprint: Dataset.fingerprint. weights, content, features: hex SHA-256 of the weights file, of the images'
    bytes, and of another system's features file. h, w: input size in pixels. precision, engine: as resolved.
    calibration: hex SHA-256 of the calibration images of int8. covered: the band of each query image that is covered,
    1 to 6; 0 for none. scoring: None for a features file.
    """

    dataset: str | None = None
    split: int | None = None
    fingerprint: str | None = None
    content: str | None = None
    weights: str | None = None
    features: str | None = None
    h: int | None = None
    w: int | None = None
    flip: bool | None = None
    precision: str | None = None
    engine: str | None = None
    calibration: str | None = None
    covered: int | None = None
    scoring: Scoring | None = None

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """All fields, including those of the scoring."""
        content = asdict(self)
        scoring = content.pop("scoring") or {}
        return content | scoring

    @property
    def unscored(self) -> "Record":
        """The part that a features file has; evaluations with different scoring share it."""
        return replace(self, scoring=None)

    def agrees(self, other: "Record") -> bool:
        """Whether one folder may contain both: the same features, and the same scoring if both have one."""
        same = self.unscored == other.unscored
        return same and (None in (self.scoring, other.scoring) or self.scoring == other.scoring)


USUAL = Scoring()
UNKNOWN = Record()  # of features that another system made


def words(record: Record, usual: Record) -> list[str]:
    """The settings that differ from `usual`, as words: ['split-3', '256x128', 'precision-bf16', 'rerank'].

    Digests and settings that are unknown in either record are left out.
    """
    ours, theirs = record.settings, usual.settings
    changed = {k: v for k, v in ours.items() if v is not None and theirs.get(k) not in (v, None)}
    found = [f"split-{record.split}"] if "split" in changed else []
    if changed.keys() & {"h", "w"}:
        found.append(f"{record.h}x{record.w}")
    for name in ("flip", "precision", "engine", "covered", *(f.name for f in fields(Scoring))):
        if name in changed:
            value, word = changed[name], "occlude" if name == "covered" else name
            if isinstance(value, bool):
                found.append(word if value else f"no_{word}")
            else:
                found.append(f"{word}-{value}")
    return found


def differences(record: Record, other: Record) -> str:
    """'precision fp32 instead of bf16, weights 1a2b3c4d instead of 99aa88bb'; "" when the records agree."""
    ours, theirs = record.settings, other.settings
    changed = [k for k in ours if k in theirs and ours[k] != theirs[k]]
    return ", ".join(f"{k} {shortened(ours[k])} instead of {shortened(theirs[k])}" for k in changed)


def shortened(value: Any) -> Any:
    return value[:8] if isinstance(value, str) and len(value) == 64 else value


def read_record(path: Path) -> Record:
    """The record in a result.json or features.h5. Raises MissingInput, InputError."""
    if not path.is_file():
        raise MissingInput(f"{path} does not exist; evaluate.py writes it")
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8")).get("record")
        else:
            with h5py.File(path, "r") as f:
                content = json.loads(f.attrs.get("record", "null"))
    except (OSError, ValueError, AttributeError, TypeError) as e:
        raise InputError(f"{path} is damaged ({type(e).__name__}: {e}); evaluate again") from e
    if content is None:
        raise InputError(f"{path} was made by an older version, which kept no record; evaluate again")
    return Record.from_json(content, path)


def folder_for(folder: Path, record: Record, usual: Record) -> Path:
    """`folder` with the `words` of the record, for example eval-market1501_precision-bf16_rerank.

    If that folder has another evaluation, further words or the digest are appended. The same record always gets the
    same folder.
    """
    wanted = with_words(folder, words(record, usual))
    holder = other_record(wanted, record)
    if holder is None:
        return wanted
    digest = record.digest
    for more in (words(record, holder), [digest[:8]], [digest]):
        place = with_words(wanted, more)
        if other_record(place, record) is None:
            break
    changed = differences(record, holder)
    logger.info(f"{wanted} contains another evaluation; this one, with {changed}, is written to {place}")
    return place


def with_words(folder: Path, more: list[str]) -> Path:
    return folder.with_name("_".join([folder.name, *more]))


def other_record(folder: Path, record: Record) -> Record | None:
    """The record of another evaluation in `folder`, or None. Unreadable and older files are ignored."""
    for name in EVALUATION_FILES:
        with suppress(InputError):
            found = read_record(folder / name)
            if not record.agrees(found):
                return found
    return None
