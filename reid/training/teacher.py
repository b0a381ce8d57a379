"""Distillation: a smaller model also learns from a teacher, a model that was trained before.

The student imitates the similarities that the teacher's features give to the images of a batch. They are comparable
for any width and number of slots. It also imitates the teacher's logits if the teacher knows the same identities.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reid.config import Config
from reid.data.records import Dataset
from reid.device import autocast
from reid.files import sha256
from reid.inference.prepare import prepare
from reid.models.weights import read_weights, trained_on
from reid.training.checks import training_images


@dataclass(frozen=True)
class Teacher:
    """A trained model, prepared for inference.

    size: height and width of its images. columns: its class of each of the student's; None without logits.
    """

    model: nn.Module
    size: tuple[int, int]
    columns: Tensor | None
    device: torch.device
    precision: str = "fp32"
    path: str = ""
    sha256: str = ""
    words: str = ""  # for the log

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (n, 3, H, W) -> features (n, S, D), logits (n, L, K) of the student's K identities or None."""
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        with autocast(self.precision, self.device):
            output = self.model(images)
        if self.columns is None:
            return output, None
        features, logits = output
        return features, logits[..., self.columns]


def read_teacher(config: Config, dataset: Dataset, classes: list[int], device: torch.device, precision: str) -> Teacher:
    """The teacher of config.teacher for a student with these identities. Raises MissingInput, InputError."""
    path = Path(config.teacher)
    model, own = read_weights(path)
    known, held_out = identities(path, own, dataset), training_images(config, dataset)[1]
    columns = None
    if set(classes) <= set(known) and model.num_classes:
        columns = torch.tensor([known.index(pid) for pid in classes], device=device)
    size = (own.h, own.w)
    words = f"teacher {path}: {own.model} on {own.backbone}, {own.h}x{own.w}; the student learns from its features "
    words += "and logits" if columns is not None else "only, since its classifiers are not for the same identities"
    if {image.pid for image in held_out} & set(known):
        words += ". The held-out identities were in its training, so their scores are too high"
    model = prepare(model, size, precision).to(device)
    # the flag of the model itself selects what it returns; its layers stay in eval mode
    model.training = columns is not None
    return Teacher(model, size, columns, device, precision, path.as_posix(), sha256(path), words)


def identities(path: Path, own: Config, dataset: Dataset) -> list[int]:
    """The identities of the teacher's classes, in order; none if it was trained on another dataset.

    own: the teacher's configuration.
    """
    if trained_on(path) != dataset.fingerprint:
        return []
    return sorted({image.pid for image in training_images(own, dataset)[0]})
