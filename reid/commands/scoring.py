"""The work of evaluate: scores a features file or weights, and prints and saves the results."""

import json
import logging
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reid.commands.evaluate import Request
from reid.config import Config
from reid.data.loader import warn_of_shape
from reid.data.prepare import folder_of, open_dataset
from reid.data.read import read_json
from reid.data.records import EASY, Dataset
from reid.device import find_hardware, resolve_precision, set_up
from reid.errors import InputError
from reid.evaluation import splits
from reid.evaluation.conventions import SingleShotDraws
from reid.evaluation.features import SEVERAL, Features, read_features
from reid.evaluation.record import USUAL, Record, Scoring, folder_for, with_words, words
from reid.evaluation.results import evaluate
from reid.files import locked, sha256, writing
from reid.inference.engines import Wanted, open_engine
from reid.inference.int8 import wanted_calibration
from reid.inference.testset import Extraction
from reid.models.layers import check_height
from reid.models.weights import read_weights, trained_on
from reid.processes import World, connected
from reid.profiles import from_flags
from reid.runs import evaluation_folder, newest_weights

logger = logging.getLogger(__name__)


def score_file(request: Request) -> None:
    """Scores a features file. Saves the result beside a features.h5, for other files in exp_dir/features/."""
    config = request.config
    hardware = find_hardware(config.device, config.gpus, warn=False)
    set_up(hardware, "fp32", config.threads)
    path = Path(config.features)
    features = read_features(path, config.multi_query != "none")
    folder = path.parent if path.name == "features.h5" else Path(config.exp_dir, "features", path.stem)
    (dataset,) = request.given.get("dataset_type", (None,))[:1]
    (split,) = (request.splits or (None,))[:1]
    with locked(folder):
        score(features, config, hardware.device, folder, dataset, split)


def score(
    features: Features,
    config: Config,
    device: torch.device,
    base: Path,
    dataset: str | None = None,
    split: int | None = None,
) -> splits.Scored:
    """Scores features, and prints and saves the result in `base`, or beside it if settings differ.

    dataset, split: of the images in the report; None: as recorded.
    """
    on_gpu = device if device.type == "cuda" else None
    result = evaluate(features, Scoring.of(config), camera_pairs=config.camera_pairs, fpr=config.fpr, device=on_gpu)
    folder = folder_for(base, result.record, replace(features.record, covered=0, scoring=USUAL))
    say_if_other_rate(folder / "result.json", config.fpr)
    with writing(folder):
        result.save(folder)
    print(f"{result}\nresult in {folder}")
    if result.features.query.camids is None:
        print(EASY)
    if config.report:
        from reid.report.page import write_report
        from reid.report.sources import Content, Source, run_of

        content = Content(dataset=dataset, dataset_path=config.dataset_path, split=split, device=on_gpu)
        write_report(Source(folder, run_of(folder)), result, content)
    return splits.Scored.of(result, folder)


def say_if_other_rate(path: Path, fpr: float) -> None:
    """Logs that a result of the same evaluation, with the threshold for another --fpr, is replaced."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # none, damaged or from another version
        before = json.loads(path.read_text(encoding="utf-8"))["open_set"]["fpr"]
        if before != fpr:
            logger.info(f"{path} with the threshold for --fpr {before:g} is replaced")


def score_weights(request: Request) -> None:
    """Scores weights on each dataset. Every process of a distributed evaluation calls it."""
    asked = request.config
    dataset = asked.datasets if "dataset_type" in request.given else None
    weights = Path(asked.pretrained_weights_dir or newest_weights(asked.exp_dir, dataset))
    model, trained = read_weights(weights)
    config = from_flags(request.given, trained.for_evaluation())
    check_height(config.h, config.stripes)
    hardware = find_hardware(config.device, config.gpus)
    precision = set_up(hardware, config.precision, config.threads)
    with connected(hardware.device) as here:
        calibration = wanted_calibration(request.given, precision, weights, ("calibration", "max_loss"))
        wanted = Wanted(
            config.engine,
            precision,
            device=hardware.device,
            sha256=sha256(weights),
            batch_size=config.batch_size,
            calibration=calibration,
        )
        evaluation = Evaluation(weights, model, trained, config, wanted, here)
        for name in config.dataset_type:
            evaluation.score_dataset(folder_of(name, "").name, request.splits)  # resolves an alias


@dataclass(frozen=True)
class Evaluation:
    """Weights to score. trained: the configuration of their training. wanted: how their model is to run."""

    weights: Path
    model: nn.Module
    trained: Config
    config: Config
    wanted: Wanted
    here: World
    opened: dict[bool, Extraction] = field(default_factory=dict)  # by Wanted.many

    @property
    def usual(self) -> Record:
        """The settings that a folder name omits: those of the training, any engine, and default scoring."""
        own = self.trained.for_evaluation()
        precision = resolve_precision(own.precision, self.wanted.device)
        record = Record(split=own.split, h=own.h, w=own.w, flip=True, precision=precision)
        return replace(record, covered=0, scoring=USUAL)

    def extraction(self, count: int) -> Extraction:
        """For a dataset of `count` images. Datasets and splits share it."""
        wanted, config = replace(self.wanted, count=count), self.config
        if wanted.many not in self.opened:
            self.opened[wanted.many] = Extraction(
                engine=open_engine(self.model, (config.h, config.w), wanted),
                bands=getattr(self.model, "bands", None),
                weights=wanted.sha256,
                h=config.h,
                w=config.w,
                precision=wanted.precision,
                calibration=wanted.calibration.digest if wanted.calibration else None,
                batch_size=config.batch_size,
                num_workers=config.num_workers,
                here=self.here,
            )
        return self.opened[wanted.many]

    def score_dataset(self, name: str, wanted: tuple[int, ...] | None) -> None:
        """Scores the wanted splits of a dataset, and the mean of several."""
        first, numbers = self.here.first, self.splits_of(name, wanted)
        base = evaluation_folder(self.weights, self.config.exp_dir, name)
        if first:
            test = open_dataset(name, self.config.dataset_path, numbers[0]).query
            warn_of_shape(test, self.config.h, self.config.w)
        with locked(base) if first else nullcontext():  # only one process at a time chooses folders
            bands = [self.score_split(name, number, base) for number in numbers]
            for scored in zip(*bands) if first and len(numbers) > 1 else ():
                self.summarise(scored, base, "all" if wanted is None else "-".join(map(str, numbers)))

    def splits_of(self, name: str, wanted: tuple[int, ...] | None) -> list[int]:
        """The split numbers. wanted: () for the training's split, None for all. Raises InputError."""
        if wanted == ():
            return [self.config.split]
        path = folder_of(name, self.config.dataset_path) / "splits.json"
        if not path.exists():
            open_dataset(name, self.config.dataset_path)  # prepares it
        count = len(read_json(path, list))
        numbers = list(range(count)) if wanted is None else list(wanted)
        if absent := [n for n in numbers if n >= count]:
            there = f"use 0 to {count - 1}, or all" if count > 1 else "its only one is 0"
            raise InputError(f"{path}: --split {absent[0]} does not exist; {there}")
        return numbers

    def check_protocol(self, dataset: Dataset) -> None:
        """Raises InputError, before the long work, for a dataset that the protocol of the flags does not fit."""
        if self.config.tracks and not dataset.labels.tracks:
            raise InputError(f"--tracks: {dataset.folder} has no tracks; prepare veri776 makes a dataset with them")
        if self.config.cmc == "vehicleid":
            sides = (dataset.query, dataset.gallery)
            pids, camids = ([np.array([image[i] for image in side]) for side in sides] for i in (1, 2))
            SingleShotDraws(*pids, *camids)  # raises for other lists

    def score_split(self, name: str, split: int, base: Path) -> list[splits.Scored]:
        """Scores one split, and again with each covered band; [] on ranks other than 0."""
        dataset = open_dataset(name, self.config.dataset_path, split)
        self.check_protocol(dataset)
        extraction = self.extraction(len(dataset.query) + len(dataset.gallery))
        device, first = self.wanted.device, self.here.first
        record, folder = extraction.record_of(name, split, dataset), base
        if first:
            print(f"{self.weights} on {dataset}")
            trained = [folder_of(n, "").name for n in self.trained.dataset_type]
            if name in trained and split != self.trained.split:
                logger.warning(
                    f"the weights were trained on split {self.trained.split} of {name}; where test identities of "
                    f"split {split} are among its training identities, the scores are too high"
                )
            elif trained == [name] and trained_on(self.weights) not in (None, dataset.fingerprint):
                logger.warning(
                    f"{dataset.folder} has changed since the weights were trained on it; where its test identities "
                    "were among the training identities, the scores are too high"
                )
            folder = folder_for(base, record, self.usual)
        features = extraction.features(folder / "features.h5", dataset, record)
        if self.config.multi_query != "none" and dataset.multi_query:
            more = extraction.several(folder / SEVERAL, dataset, record)
            features = features and replace(features, several=more)
        scored = [score(features, self.config, device, folder)] if features else []
        for band in filter(None, self.config.occlude):
            covered = extraction.covered(features, dataset, band)
            if covered:
                print(f"\nband {band} of 6 of each query image is covered")
                scored.append(score(covered, self.config, device, folder))
        if first and dataset.without_cameras and not self.config.no_cameras:
            print(EASY)
        return scored

    def summarise(self, scored: tuple[splits.Scored, ...], base: Path, numbers: str) -> None:
        """Prints and saves the mean of several splits."""
        content = splits.summary(scored)
        record = replace(scored[0].record, split=self.trained.split)
        wanted = with_words(base, [f"splits-{numbers}", *words(record, self.usual)])
        with writing(wanted):
            folder = splits.save(content, wanted)
        print(f"\n{splits.as_text(content)}\nsummary in {folder / 'splits.json'}")
