"""Validation: the held-out identities are query and gallery at once."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reid.config import Config
from reid.data.loader import ImageStore, in_order
from reid.data.records import Image
from reid.errors import InputError
from reid.evaluation.ranking import Ranking, rank, same_person
from reid.inference.describe import extract
from reid.inference.engines import Wanted, open_engine
from reid.processes import World, part_of


@dataclass(frozen=True)
class Validation:
    """The held-out images, none without validation, and which of them can answer each other.

    With cameras, images of the same camera are not compared. Without, each image is compared with all others.
    """

    config: Config
    images: list[Image]
    without_cameras: bool

    @property
    def camids(self) -> np.ndarray:
        """(n,) the camera of each image; without cameras a number of its own."""
        if self.without_cameras:
            return np.arange(len(self.images))
        return np.array([image.camid for image in self.images])

    @property
    def pids(self) -> np.ndarray:
        return np.array([image.pid for image in self.images])

    def due(self, step: int, steps_in_epoch: int, total: int) -> bool:
        """Whether an epoch with a validation ends after `step`: every --eval_every-th and the last."""
        c = self.config
        if not (self.images and c.eval_every and step):
            return False
        epoch, begun = divmod(step, steps_in_epoch)
        return step == total or (not begun and epoch % c.eval_every == 0)

    def describe(self) -> str:
        """The images and matches in a line. Raises InputError if no image has a match."""
        pairs = same_person(self.pids, self.pids, self.camids, self.camids)
        count = len(np.unique(pairs.query[~pairs.junk]))
        people = len(set(self.pids.tolist()))
        kind = "image" if self.without_cameras else "image from another camera"
        if not count:
            raise InputError(
                f"--num_val {self.config.num_val}: none of the {people} held-out identities has a second {kind}, so "
                "validation has no match; use a greater --num_val, --eval_every 0 or --train_set trainval"
            )
        return (
            f"validation on {len(self.images)} images of {people} identities; {count} of them have a match, a second "
            f"{kind}"
        )

    def score(self, model: nn.Module, device: torch.device, precision: str, here: World) -> Ranking:
        """Every process of a distributed training calls it; `model` is in training mode afterwards."""
        c, count = self.config, len(self.images)
        store = ImageStore(self.images, c.h, c.w, c.num_workers, device=device)
        batches = store.batches([part_of(rows, here) for rows in in_order(count, c.batch_size)])
        try:
            engine = open_engine(model.eval(), (c.h, c.w), Wanted("torch", precision, device=device))
            features = extract(engine, batches, count)
        finally:
            model.train()
        return rank(-features @ features.T, self.pids, self.pids, self.camids, self.camids)
