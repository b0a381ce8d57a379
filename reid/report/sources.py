"""What a report is made from: an evaluation or a features file, its run folder, and the images."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from reid.data.labels import Labels
from reid.data.prepare import folder_of
from reid.data.read import read_dataset
from reid.errors import InputError, MissingInput
from reid.evaluation.features import Features, short_names
from reid.evaluation.record import USUAL, Record, Scoring, read_record
from reid.inference.testset import labels_by_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """folder: where the report goes. run: the run folder of the weights. features: the features file, scored as
    `scoring` says; None for a run that was not evaluated."""

    folder: Path
    run: Path | None = None
    features: Path | None = None
    scoring: Scoring = USUAL


def find_sources(path: Path) -> list[Source]:
    """The reports that an argument asks for: one per evaluation of a run. Raises MissingInput, InputError."""
    if path.is_file() and path.name != "features.h5":
        return [Source(path.with_name(f"{path.stem}-report"), features=path)]
    if (path / "config.json").is_file():
        return evaluations(path) or [Source(path, run=path)]
    folder = path.parent if path.is_file() else path
    if not is_evaluation(folder):
        raise MissingInput(
            f"{path} is not a run folder (config.json), an evaluation's folder (result.json, features.h5) "
            "or a features file"
        )
    return [evaluation(folder)]


def evaluations(run: Path) -> list[Source]:
    """The evaluations of a run; those that cannot be reported are logged and left out."""
    found = []
    for folder in filter(is_evaluation, sorted(run.glob("eval-*"))):
        try:
            found.append(evaluation(folder))
        except InputError as e:
            logger.warning(f"no report of {folder}: {e}")
    return found


def is_evaluation(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("result.json", "features.h5"))


def evaluation(folder: Path) -> Source:
    """An evaluation's folder, with the scoring of its result. Raises InputError without features or record."""
    features, result = folder / "features.h5", folder / "result.json"
    scoring = USUAL
    if result.is_file():
        record = read_record(result)
        scoring = record.scoring or USUAL
        if not features.is_file():
            features = features_beside(folder, record)
    return Source(folder, run_of(folder), features, scoring)


def features_beside(folder: Path, record: Record) -> Path:
    """The features file that a result was made from: evaluations that differ in their scoring share one."""
    for path in sorted(folder.resolve().parent.glob("*/features.h5")):
        try:
            if read_record(path) == record.unscored:
                return path
        except InputError:  # of an older version, or damaged
            continue
    raise InputError(
        f"{folder} has no features.h5, and no folder beside it has the features of its result; "
        "report their file, or evaluate again with --report"
    )


def run_of(folder: Path) -> Path | None:
    """The run folder that an evaluation's folder is in."""
    parent = folder.resolve().parent
    if not (parent / "config.json").is_file():
        return None
    return folder.parent if folder.name not in ("", "..") else parent  # as typed, for the page


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a report shows.

    top: answers per query. other_runs: run folders whose training curves are drawn too. maps: names of images over
    which the backbone's map is drawn. dataset, split: None as recorded in the features. need_images: images that are
    not found are an error instead of a warning. device: of the distances; None for NumPy on the CPU.
    """

    top: int = 10
    other_runs: Sequence[Path] = ()
    maps: Sequence[str] = ()
    dataset: str | None = None
    dataset_path: str = "./datasets"
    split: int | None = None
    need_images: bool = False
    device: Any = None


class FoundImages(NamedTuple):
    """files: of image names. missing: a sentence about images that were not found, or "". labels: of the dataset."""

    files: dict[str, str]
    missing: str = ""
    labels: Labels = Labels()


def find_images(features: Features, content: Content) -> FoundImages:
    """The images of the features. Raises InputError where none is found but they are needed."""
    try:
        return image_files(features, content)
    except InputError as e:
        if content.need_images:
            raise
        return FoundImages({}, f"{e} The report has numbers and curves only.")


def image_files(features: Features, content: Content) -> FoundImages:
    record = features.record
    problems: list[str] = []
    dataset = content.dataset or record.dataset
    if not dataset:
        raise InputError("The features do not name their dataset; give it with --dataset_type.")
    folder = folder_of(dataset, content.dataset_path)
    if not (folder / "meta.json").is_file():
        raise MissingInput(f"The images are not in {folder} (no meta.json); give their folder with --dataset_path.")
    split = content.split if content.split is not None else record.split or 0
    found = read_dataset(folder, split, problems.append)
    if not problems and record.fingerprint not in (None, found.fingerprint):
        raise InputError(f"{folder} is not the dataset of these features: its fingerprint differs.")
    files = [image.path for image in (*found.query, *found.gallery)]
    paths = dict(zip(short_names(files), files))
    labels = Labels()
    if record.fingerprint and found.labels.given:
        original = labels_by_path(found).sources
        labels = replace(found.labels, sources={name: original[path] for name, path in paths.items()})
    names = [*features.query.names, *features.gallery.names]
    count = sum(name not in paths for name in names)
    missing = f"{count:,} of the {len(names):,} images are not in {folder}; the page shows empty boxes for them."
    return FoundImages(paths, missing if count else "", labels)
