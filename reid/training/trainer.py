"""The training loop: batches, steps, a checkpoint after each epoch, and validation if it is requested."""

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from reid.config import Config
from reid.data.loader import ImageStore
from reid.data.records import EASY, Dataset
from reid.data.transforms import Augmentation, augment, draw_augmentation, normalise
from reid.device import Hardware, find_hardware, set_up
from reid.errors import InputError, Interrupted
from reid.files import writing
from reid.models import build_model, weights
from reid.models.layers import check_height
from reid.models.pretrained import read_start, start_from
from reid.models.weights import fill
from reid.processes import World, average, connected, wait
from reid.runs import Run, is_finished
from reid.signals import signals_noted
from reid.training.checkpoint import changed_settings, check_content, load_latest
from reid.training.checks import check_settings, checked_dataset, epoch_batches, training_images
from reid.training.longer import same_length, with_length, words
from reid.training.schedule import is_frozen, rates, total_steps
from reid.training.step import TrainStep
from reid.training.teacher import read_teacher
from reid.training.validation import Validation
from reid.versions import note_versions


def train(config: Config) -> Path:
    """Trains with the configuration, or continues the run of config.resume; returns the weights file.

    Every process of a distributed training calls it. Raises InputError for bad input, CheckFailed if a gradient is
    not finite, Interrupted after a stop signal.
    """
    check_height(config.h, config.stripes)
    hardware = find_hardware(config.device, config.gpus)
    if set_up(hardware, config.precision, config.threads) == "int8":
        raise InputError("--precision int8 is not for training; use bf16 or fp32, and int8 with evaluate.py")
    with connected(hardware.device) as here, signals_noted() as signals:
        if not here.first:
            wait()  # until rank 0 has prepared the raw data and created the folder
        dataset = checked_dataset(config, here.first)
        check_settings(config, dataset)
        run = Run.open(config, here.first)
        if here.first:
            wait()
        try:
            with writing(run.folder):
                return Trainer(config, dataset, run, hardware.device, here).run_all(signals)
        except InputError:
            if not config.resume:
                run.discard()
            raise
        finally:
            run.close()


class Trainer:
    """Model, optimiser and data of one run, and its progress (`step`)."""

    def __init__(self, config: Config, dataset: Dataset, run: Run, device: torch.device, here: World):
        self.config, self.dataset, self.run, self.device, self.here = config, dataset, run, device, here
        self.images, held_out = training_images(config, dataset)
        self.validation = Validation(config, held_out if config.eval_every else [], dataset.without_cameras)
        self.pids = [image.pid for image in self.images]
        self.classes = sorted(set(self.pids))
        label_of = {pid: i for i, pid in enumerate(self.classes)}
        self.labels = torch.tensor([label_of[pid] for pid in self.pids], device=device)

        batches = epoch_batches(config, self.pids, 1)
        for size in {len(batch) for batch in batches}:
            here.share(size)  # raises InputError if it cannot be split
        self.steps_in_epoch = len(batches)
        self.total = total_steps(config, self.steps_in_epoch)
        self.step = 0  # steps done
        self.best: float | None = None  # mAP on the held-out identities
        self.validated = 0  # step of the last validation

        torch.manual_seed(config.seed)
        self.outputs = config.classes or len(self.classes)
        model = build_model(config, self.outputs).to(device).to(memory_format=torch.channels_last)
        self.train_step = TrainStep(model, config, device, here)
        self.model = self.train_step.model
        if config.teacher:
            self.train_step.teacher = read_teacher(config, dataset, self.classes, device, self.train_step.precision)

    @property
    def teacher_sha256(self) -> str:
        return self.train_step.teacher.sha256 if self.train_step.teacher else ""

    def run_all(self, signals: list[int]) -> Path:
        """Runs all remaining steps; returns weights.pth."""
        c = self.config
        self.start()
        store = ImageStore(self.images, c.h, c.w, c.num_workers, c.cache, self.device)
        self.run.open_metrics(self.step)
        started, before = time.monotonic(), self.step
        hidden = None if self.here.first else True
        self.validate_if_due()  # stopped before the validation of its last epoch
        with tqdm(total=self.total, initial=self.step, desc="training", unit=" steps", disable=hidden) as bar:
            while self.step < self.total:
                self.one_epoch(store, bar, signals)
        seconds = time.monotonic() - started
        rate = (self.step - before) * c.batch_size / max(seconds, 1e-9)
        self.run.say(f"trained {self.step - before} steps in {seconds:.0f} s, {rate:.1f} images/s")
        self.run.record(self.step, {"images_per_second": rate})
        return self.finish()

    def start(self) -> None:
        """Loads the checkpoint or the pretrained weights, and logs the start of the training."""
        c, say = self.config, self.run.say
        used: dict[str, Any] = {"device": Hardware(self.device).name, "precision": self.train_step.precision}
        say(f"run folder {self.run.folder}")
        if not (c.resume and self.resume()):
            used["pretrained"] = self.load_pretrained()
        if teacher := self.train_step.teacher:
            say(teacher.words)
            used["teacher"] = {"file": teacher.path, "sha256": teacher.sha256}
        say(str(self.dataset))
        processes = f"{self.here.size} processes" if self.here.size > 1 else "one process"
        say(
            f"training on {len(self.images)} images of {len(self.classes)} identities: {self.total} steps, "
            f"{self.steps_in_epoch} per epoch; {processes}"
        )
        if self.validation.images:
            say(self.validation.describe())
            if self.validation.without_cameras:
                say(EASY)
        if self.here.first:
            note_versions(self.run.folder, {**used, "dataset_fingerprint": self.dataset.fingerprint})

    def load_pretrained(self) -> dict[str, str] | None:
        """Takes the trained weights of --pretrained; returns the file and its SHA-256, None for random weights."""
        c = self.config
        if c.pretrained == "none":
            self.run.say(f"{c.backbone} starts from random weights")
            return None
        start = read_start(c.pretrained, c.backbone)
        self.run.say(start_from(self.model, start, c.backbone, self.dataset.fingerprint))
        return start.facts

    def one_epoch(self, store: ImageStore, bar: tqdm, signals: list[int]) -> None:
        """The remaining steps of the current epoch."""
        c = self.config
        epoch, done = self.step // self.steps_in_epoch + 1, self.step % self.steps_in_epoch
        batches = epoch_batches(c, self.pids, epoch)[done : done + self.total - self.step]
        mine = [batch[self.here.share(len(batch))].tolist() for batch in batches]
        sums: dict[str, Tensor] = {}
        counted = 0
        for batch, rows, pixels in zip(batches, mine, store.batches(mine), strict=True):
            terms = self.one_step(epoch, len(batch), rows, pixels)
            sums = {name: sums.get(name, 0) + value for name, value in terms.items()}
            counted += 1
            bar.update()
            last = self.step == self.total
            # reading numbers from an accelerator waits for it, so it is done rarely
            look = last or self.step % c.print_freq == 0
            if look or self.device.type == "cpu":
                self.train_step.check_finite(self.step)
            if look:
                bar.set_postfix({name: f"{value.item():.2f}" for name, value in terms.items()})
            if last or self.step % c.steps_per_log == 0:
                self.log(epoch, {name: average(value / counted).item() for name, value in sums.items()})
                sums, counted = {}, 0
            if self.must_stop(signals, look):
                self.save()
                raise Interrupted(self.stopped_by(signals))
        self.save()  # also if the validation fails
        self.validate_if_due()

    def one_step(self, epoch: int, n: int, rows: list[int], pixels: Tensor) -> dict[str, Tensor]:
        """One step on this process's rows of a global batch of n images; returns the terms of the loss."""
        images = self.prepare(pixels, epoch, n)
        labels = self.labels[torch.as_tensor(rows, device=self.device)]
        seed = [self.config.seed, self.step, self.here.rank]  # of dropout, which alone depends on the process
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        frozen = is_frozen(self.config, self.step, self.total)
        terms = self.train_step(images, labels, rates(self.config, self.step, self.total), frozen)
        self.step += 1
        return terms

    def prepare(self, pixels: Tensor, epoch: int, n: int) -> Tensor:
        """uint8 images of this process -> augmented, normalised float32.

        The random numbers of the whole global batch of n images come from (seed, epoch, step).
        """
        c = self.config
        rng = np.random.default_rng([c.seed, epoch, self.step])
        drawn = draw_augmentation(rng, n, c.h, c.w, Augmentation.of(c))
        return normalise(augment(pixels, drawn.part(self.here.share(n))))

    def must_stop(self, signals: list[int], look: bool) -> bool:
        """Whether any process has received a stop signal. Several processes ask each other only if `look`."""
        if self.here.size == 1:
            return bool(signals)
        return look and average(torch.tensor(float(bool(signals)), device=self.device)).item() > 0

    def stopped_by(self, signals: list[int]) -> str:
        reason = signal.Signals(signals[0]).name if signals else "a signal"
        return (
            f"stopped by {reason} after step {self.step} of {self.total}; "
            f"continue with: python train.py --resume {self.run.folder}"
        )

    def log(self, epoch: int, means: dict[str, float]) -> None:
        rate = self.train_step.optimizer.param_groups[1]["lr"]
        self.run.record(self.step, {"epoch": epoch, "lr": rate, **means})
        shown = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        self.run.say(f"step {self.step}/{self.total}  epoch {epoch}  lr {rate:.2g}  {shown}")

    def validate_if_due(self) -> None:
        """Validates and saves if the epoch that ends here has a validation. Raises InputError after that is saved."""
        due = self.validation.due(self.step, self.steps_in_epoch, self.total)
        if not due or self.validated == self.step:
            return
        try:
            self.validate()
        except InputError as e:
            run = self.run.folder
            raise InputError(
                f"validation failed after step {self.step}, which is saved: {e}. Repair this and continue with: "
                f"python train.py --resume {run}; or without validation: --resume {run} --eval_every 0 --allow_changes"
            ) from e
        self.validated = self.step
        self.save()

    def validate(self) -> None:
        """Scores the held-out identities; best.pth keeps the best weights."""
        epoch = -(-self.step // self.steps_in_epoch)
        result = self.validation.score(self.model, self.device, self.train_step.precision, self.here)
        mean_ap, rank1 = result.mean_ap, float(result.cmc[0])
        self.run.record(self.step, {"val_map": mean_ap, "val_rank1": rank1})
        better = self.best is None or mean_ap > self.best
        shown = f"epoch {epoch}  held-out mAP {mean_ap:.4f}  Rank-1 {rank1:.4f}"
        self.run.say(shown + ("  (best so far)" if better else ""))
        if better:
            self.best = mean_ap
            best = {**self.weights(), "step": self.step, "map": mean_ap}
            if self.here.first:
                weights.save_checkpoint(self.run.folder / "best.pth", best)

    def weights(self) -> dict[str, Any]:
        """The content of weights.pth; `fingerprint` is the dataset of its classifiers."""
        return {
            "config": self.config.to_json(),
            "classes": self.outputs,
            "state": self.model.state_dict(),
            "fingerprint": self.dataset.fingerprint,
        }

    def save(self) -> None:
        """Writes checkpoint.pth and keeps the one before as previous.pth. Raises CheckFailed before it saves weights
        that are not finite."""
        self.train_step.check_finite(self.step)
        content = {
            **self.weights(),
            "training": self.train_step.state_dict(),
            "step": self.step,
            "best": self.best,
            "validated": self.validated,
            "precision": self.train_step.precision,
            "teacher": self.teacher_sha256,
        }
        if self.here.first:
            weights.save_checkpoint(self.run.folder / "checkpoint.pth", content, self.run.folder / "previous.pth")

    def resume(self) -> bool:
        """Continues from the last checkpoint; false if there is none. Raises InputError if it does not fit."""
        folder, say = self.run.folder, self.run.say
        content = load_latest(folder, say)
        if content is None:
            if is_finished(folder):
                raise InputError(
                    f"--resume {folder}: this finished run has no checkpoint.pth to continue from; start a new run "
                    f"from its weights: --pretrained {folder / 'weights.pth'}"
                )
            say(f"no checkpoint in {folder} yet: starting from step 0")
            return False
        check_content(content, folder)
        stored = Config.from_json(content["config"], str(folder))
        self.config = with_length(self.config, stored, content["step"], self.steps_in_epoch)
        longer = self.config.continued_from != stored.continued_from
        compared = same_length(self.config, stored) if longer else self.config
        precision, teacher = self.train_step.precision, self.teacher_sha256
        if changed := changed_settings(content, compared, precision, teacher, folder):
            if not self.config.allow_changes:
                raise InputError(
                    f"--resume {folder}: the configuration differs: {changed}; repeat the flags of that run, "
                    "start a new one, or allow it with --allow_changes"
                )
            say(f"the configuration differs from the checkpoint's: {changed}")
        if content["fingerprint"] != self.dataset.fingerprint:
            raise InputError(f"--resume {folder}: {self.dataset.folder} is not the dataset of this run")
        fill(self.model, content["state"], folder)
        self.train_step.load_state_dict(content["training"])
        self.step, self.best = content["step"], content["best"]
        self.validated = content.get("validated", self.step)  # older checkpoints were saved after it
        if longer:
            say(words(self.config, stored, self.step, self.total))
            self.run.lengthen(self.config)
        say(f"resuming {folder} after step {self.step} of {self.total}")
        return True

    def finish(self) -> Path:
        """Writes weights.pth: the best weights on the held-out identities, or without validation the last."""
        chosen, path = self.weights(), self.run.folder / "weights.pth"
        if self.here.first:
            if self.validation.images:
                best = weights.load_checkpoint(self.run.folder / "best.pth")
                chosen["state"] = best["state"]
                self.run.say(f"kept the weights of step {best['step']}, held-out mAP {best['map']:.4f}")
            if self.config.continued_from:
                self.run.set_results_aside(self.config.continued_from[-1])
            weights.save_weights(path, chosen)
            self.run.end_lengthening()
            self.run.say(f"weights in {path}")
        wait()
        return path
