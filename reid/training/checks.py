"""What is checked before the first step, so that a long training does not fail late."""

import logging
from pathlib import Path

import numpy as np

from reid.config import Config
from reid.data.check import Finding, check_lists
from reid.data.prepare import open_dataset
from reid.data.records import Dataset, Image, combine
from reid.data.sampler import SAMPLERS
from reid.errors import InputError, MissingInput
from reid.models.backbone import build_backbone
from reid.models.layers import check_height
from reid.models.timm_map import map_shape
from reid.variants import TIMM

logger = logging.getLogger(__name__)

MOST_SHOWN = 5  # findings of a dataset


def checked_dataset(config: Config, first: bool) -> Dataset:
    """The datasets of the configuration as one. Raises InputError if their lists have an error.

    first: whether this process, rank 0, logs the warnings.
    """
    datasets = [open_dataset(name, config.dataset_path, config.split) for name in config.dataset_type]
    for dataset in datasets:
        if not dataset.trainval:
            raise InputError(f"{dataset.folder} has no training images; it can only be evaluated")
        findings = check_lists(dataset)
        for finding in findings:
            if finding.level == "error":
                raise InputError(f"{finding.message} (all findings: python -m reid check {dataset.name})")
        if first:
            log_findings(dataset, findings)
    return combine(datasets)


def log_findings(dataset: Dataset, findings: list[Finding]) -> None:
    for finding in findings[:MOST_SHOWN]:
        logger.warning(finding.message)
    if len(findings) > MOST_SHOWN:
        logger.warning(f"{len(findings) - MOST_SHOWN} more findings: python -m reid check {dataset.name}")


def training_images(config: Config, dataset: Dataset) -> tuple[list[Image], list[Image]]:
    """(training images, images of the held-out identities)."""
    if config.train_set == "train":
        return dataset.hold_out(config.num_val)
    return dataset.trainval, []


def epoch_batches(config: Config, pids: list[int], epoch: int) -> list[np.ndarray]:
    """Indices of the images of each batch of an epoch."""
    c = config
    return SAMPLERS[c.sampler](pids, c.batch_size, c.batch_sample, c.seed, epoch, c.visits)


def check_settings(config: Config, dataset: Dataset) -> None:
    """Raises InputError for settings that do not fit the model or the dataset."""
    check_height(config.h, config.stripes)
    size, k = config.batch_size, config.batch_sample
    pids = [image.pid for image in training_images(config, dataset)[0]]
    if min(map(len, epoch_batches(config, pids, 1))) < 2:
        raise InputError("a batch of one image has no batch statistics; use --batch_size 2 or more")
    if config.sampler == "pk" and config.triplet_weight and size < 2 * k:
        raise InputError(
            f"--batch_size {size} with --batch_sample {k} is one identity per batch, and a triplet needs two; "
            f"use --batch_size {2 * k} or more"
        )
    if 0 < config.classes < len(set(pids)):
        raise InputError(f"--classes {config.classes} is less than the {len(set(pids))} training identities")
    check_pretrained(config.pretrained)
    if config.teacher and not Path(config.teacher).is_file():
        raise MissingInput(f"--teacher {config.teacher} is not a file; give the weights file of the teacher")
    if config.backbone.startswith(TIMM):
        map_shape(build_backbone(config.backbone, config.last_stride), (config.h, config.w))


def check_pretrained(source: str) -> None:
    if source in ("auto", "none") or Path(source).is_file():
        return
    problem = f"--pretrained {source} does not exist; give a weights file, auto (ImageNet) or none"
    if Path(source).is_dir():
        problem = f"--pretrained {source} is a folder; give a weights file, such as its weights.pth"
    raise MissingInput(problem)
