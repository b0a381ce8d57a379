"""The training loop: batches -> steps, a checkpoint after each epoch, validation where it is asked for."""

import logging
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from reid.config import Config
from reid.data.check import Finding, check_lists
from reid.data.loader import ImageStore, in_order
from reid.data.prepare import open_dataset
from reid.data.records import Dataset, combine
from reid.data.sampler import SAMPLERS
from reid.data.transforms import augment, draw_augmentation, normalise
from reid.device import find_hardware, set_up
from reid.errors import InputError, Interrupted, MissingInput
from reid.evaluation.ranking import rank
from reid.files import writing
from reid.inference.describe import extract
from reid.models import build_model, weights
from reid.models.backbone import load_pretrained
from reid.models.layers import check_height
from reid.models.weights import fill
from reid.processes import World, average, connected, part_of, wait
from reid.runs import Run
from reid.signals import signals_noted
from reid.training.checkpoint import load_latest
from reid.training.schedule import rates, total_steps
from reid.training.step import TrainStep

logger = logging.getLogger(__name__)


def train(config: Config) -> Path:
    """Trains by the configuration and returns the weights file; continues a run when config.resume says so.

    With several processes, each calls it. Raises InputError for bad input, CheckFailed when a gradient is
    not finite, Interrupted on a signal.
    """
    check_height(config.h, config.stripes)
    hardware = find_hardware(config.device, config.gpus)
    set_up(hardware, config.precision)
    device = hardware.device
    with connected(device) as here, signals_noted() as signals:
        if not here.first:
            wait()  # the first prepares raw data and makes the folder
        dataset = checked_dataset(config, here.first)
        images = dataset.hold_out(config.num_val)[0] if config.train_set == "train" else dataset.trainval
        identities = len({i.pid for i in images})
        batches = epoch_batches(config, [i.pid for i in images], 1)  # or InputError
        if min(map(len, batches)) < 2:
            raise InputError("a batch of one image has no batch statistics; use --batch_size 2 or more")
        if config.sampler == "pk" and config.triplet_weight and config.batch_size < 2 * config.batch_sample:
            raise InputError(f"--batch_size {config.batch_size} with --batch_sample {config.batch_sample} is one "
                             "identity a batch, and a triplet needs two; use --batch_size "
                             f"{2 * config.batch_sample} or more")  # fmt: skip
        if 0 < config.classes < identities:
            raise InputError(f"--classes {config.classes} is less than the {identities} training identities")
        if config.pretrained not in ("auto", "none") and not Path(config.pretrained).is_file():
            raise MissingInput(f"--pretrained {config.pretrained} is not there")
        run = Run.open(config, here.first)
        if here.first:
            wait()
        try:
            with writing(run.folder):
                return Trainer(config, dataset, run, device, here).run_all(signals)
        except InputError:
            if not config.resume:
                run.discard()
            raise
        finally:
            run.close()


def checked_dataset(config: Config, first: bool) -> Dataset:
    """The datasets of the configuration as one; what their lists have wrong is said before the first step."""
    datasets = [open_dataset(name, config.dataset_path, config.split) for name in config.dataset_type]
    for dataset in datasets:
        findings = check_lists(dataset)
        for finding in findings:
            if finding.level == "error":
                raise InputError(f"{finding.message} (all findings: python -m reid check {dataset.name})")
        if first:
            tell(dataset, findings)
    return combine(datasets)


def tell(dataset: Dataset, findings: list[Finding], most: int = 5) -> None:
    for finding in findings[:most]:
        logger.warning(finding.message)
    if len(findings) > most:
        logger.warning(f"{len(findings) - most} more findings: python -m reid check {dataset.name}")


def epoch_batches(config: Config, pids: list[int], epoch: int) -> list[np.ndarray]:
    c = config
    return SAMPLERS[c.sampler](pids, c.batch_size, c.batch_sample, c.seed, epoch, c.visits)


class Trainer:
    """Model, optimiser and data of one run, and how far it has come (`step`)."""

    def __init__(self, config: Config, dataset: Dataset, run: Run, device: torch.device, here: World):
        self.config, self.dataset, self.run, self.device, self.here = config, dataset, run, device, here
        self.images, self.held_out = dataset.trainval, []
        if config.train_set == "train":
            self.images, self.held_out = dataset.hold_out(config.num_val)
        self.pids = [image.pid for image in self.images]
        self.classes = sorted(set(self.pids))
        label_of = {pid: i for i, pid in enumerate(self.classes)}
        self.labels = torch.tensor([label_of[pid] for pid in self.pids], device=device)

        batches = epoch_batches(config, self.pids, 1)
        for size in {len(batch) for batch in batches}:
            here.share(size)  # or InputError
        self.steps_in_epoch = len(batches)
        self.total = total_steps(config, self.steps_in_epoch)
        self.step = 0  # steps done
        self.best: float | None = None  # mAP on the held-out identities
        self.validates = bool(self.held_out) and config.eval_every > 0

        torch.manual_seed(config.seed)
        self.outputs = config.classes or len(self.classes)
        model = build_model(config, self.outputs).to(device, memory_format=torch.channels_last)
        self.train_step = TrainStep(model, config, device, here)
        self.model = self.train_step.model

    def run_all(self, signals: list[int]) -> Path:
        """Every remaining step; weights.pth at the end."""
        c, say = self.config, self.run.say
        say(f"run folder {self.run.folder}")
        if not (c.resume and self.resume()):
            say(load_pretrained(self.model.base, c.backbone, c.pretrained))
        say(str(self.dataset))
        processes = f"{self.here.size} processes" if self.here.size > 1 else "one process"
        say(f"training on {len(self.images)} images of {len(self.classes)} identities: {self.total} steps, "
            f"{self.steps_in_epoch} an epoch; {self.device.type}, {processes}")  # fmt: skip
        self.run.note_versions(self.dataset.fingerprint)
        store = ImageStore(self.images, c.h, c.w, c.num_workers, c.cache, self.device)
        self.run.open_metrics(self.step)
        started, before = time.monotonic(), self.step
        hidden = None if self.here.first else True
        with tqdm(total=self.total, initial=self.step, desc="training", unit=" steps", disable=hidden) as bar:
            while self.step < self.total:
                self.one_epoch(store, bar, signals)
        seconds = time.monotonic() - started
        rate = (self.step - before) * c.batch_size / max(seconds, 1e-9)
        say(f"trained {self.step - before} steps in {seconds:.0f} s, {rate:.1f} images/s")
        self.run.record(self.step, {"images_per_second": rate})
        return self.finish()

    def one_epoch(self, store: ImageStore, bar: tqdm, signals: list[int]) -> None:
        """What is left of the epoch that `step` stands in."""
        c = self.config
        epoch, done = self.step // self.steps_in_epoch + 1, self.step % self.steps_in_epoch
        batches = epoch_batches(c, self.pids, epoch)[done : done + self.total - self.step]
        mine = [batch[self.here.share(len(batch))] for batch in batches]
        sums: dict[str, Tensor] = {}
        counted = 0
        for batch, rows, pixels in zip(batches, mine, store.batches(mine), strict=True):
            images = self.prepare(pixels, epoch, len(batch))
            labels = self.labels[torch.as_tensor(rows, device=self.device)]
            torch.manual_seed(self.noise_seed())
            terms = self.train_step(images, labels, rates(c, self.step, self.total))
            sums = {name: sums.get(name, 0) + value for name, value in terms.items()}
            counted += 1
            self.step += 1
            bar.update()
            last = self.step == self.total
            # what follows reads numbers off the device: seldom where that means waiting for it
            look = last or self.step % c.print_freq == 0
            if look or self.device.type == "cpu":
                self.train_step.check_finite(self.step)
            if look:
                bar.set_postfix({name: f"{value.item():.2f}" for name, value in terms.items()})
            if last or self.step % c.steps_per_log == 0:
                self.log(epoch, {name: average(value / counted).item() for name, value in sums.items()})
                sums, counted = {}, 0
            if self.stop_asked(signals, look):
                self.save()
                reason = signal.Signals(signals[0]).name if signals else "a signal"
                raise Interrupted(
                    f"stopped by {reason} after step {self.step} of {self.total}; "
                    f"continue with: python train.py --resume {self.run.folder}"
                )
        if self.validates and (self.step == self.total or epoch % c.eval_every == 0):
            self.validate(epoch)
        self.save()

    def prepare(self, pixels: Tensor, epoch: int, n: int) -> Tensor:
        """This process's uint8 part of a global batch of n -> augmented, normalised float32; randomness from
        (seed, epoch, step) for the whole batch."""
        c = self.config
        rng = np.random.default_rng([c.seed, epoch, self.step])
        patch = (c.erasing_probability, c.erasing, c.erasing_area, c.erasing_fill)
        drawn = draw_augmentation(rng, n, c.h, c.w, *patch, c.crop_padding)
        return normalise(augment(pixels, drawn.part(self.here.share(n))))

    def noise_seed(self) -> int:
        """Of this step's and this process's dropout, the one thing that the number of processes changes."""
        return int(np.random.SeedSequence([self.config.seed, self.step, self.here.rank]).generate_state(1)[0])

    def stop_asked(self, signals: list[int], look: bool) -> bool:
        """Whether a signal came, to any process: several ask each other only now and then."""
        if self.here.size == 1:
            return bool(signals)
        return look and average(torch.tensor(float(bool(signals)), device=self.device)).item() > 0

    def log(self, epoch: int, means: dict[str, float]) -> None:
        rate = self.train_step.optimizer.param_groups[1]["lr"]
        self.run.record(self.step, {"epoch": epoch, "lr": rate, **means})
        shown = "  ".join(f"{k} {v:.3f}" for k, v in means.items())
        self.run.say(f"step {self.step}/{self.total}  epoch {epoch}  lr {rate:.2g}  {shown}")

    def validate(self, epoch: int) -> None:
        """Held-out identities as query and gallery across cameras; the best weights are kept in best.pth."""
        c = self.config
        store = ImageStore(self.held_out, c.h, c.w, c.num_workers, device=self.device)
        batches = store.batches([part_of(b, self.here) for b in in_order(len(self.held_out), c.batch_size)])
        features = extract(self.model, batches, len(self.held_out), self.device, precision=self.train_step.precision)
        self.model.train()
        pids, camids = np.array([i.pid for i in self.held_out]), np.array([i.camid for i in self.held_out])
        result = rank(-features @ features.T, pids, pids, camids, camids)
        self.run.record(self.step, {"val_map": result.mean_ap, "val_rank1": float(result.cmc[0])})
        better = self.best is None or result.mean_ap > self.best
        shown = f"epoch {epoch}  held-out mAP {result.mean_ap:.4f}  Rank-1 {result.cmc[0]:.4f}"
        self.run.say(shown + ("  (best so far)" if better else ""))
        if better:
            self.best = result.mean_ap
            best = {**self.weights(), "step": self.step, "map": self.best}
            if self.here.first:
                weights.save(self.run.folder / "best.pth", best)

    def weights(self) -> dict[str, Any]:
        return {"config": self.config.to_json(), "classes": self.outputs, "state": self.model.state_dict()}

    def save(self) -> None:
        """checkpoint.pth, the one before it as previous.pth. Never with weights that are not finite."""
        self.train_step.check_finite(self.step)
        progress = {"step": self.step, "best": self.best, "fingerprint": self.dataset.fingerprint}
        content = {**self.weights(), "training": self.train_step.state_dict(), **progress}
        if self.here.first:
            weights.save(self.run.folder / "checkpoint.pth", content, self.run.folder / "previous.pth")

    def resume(self) -> bool:
        """Continues where the last checkpoint stands; False where there is none yet. Raises InputError when it is
        of another training."""
        folder, content = self.run.folder, load_latest(self.run.folder, self.run.say)
        if content is None:
            self.run.say(f"no checkpoint in {folder} yet: starting from step 0")
            return False
        stored = Config.from_json(content["config"], str(folder))
        if changed := self.config.changes(stored):
            told = ", ".join(f"{k} {getattr(stored, k)} -> {v}" for k, v in changed.items())
            if not self.config.allow_changes:
                raise InputError(f"--resume {folder}: the configuration differs: {told}; repeat the flags of that run, "
                                 "start a new one, or allow it with --allow_changes")  # fmt: skip
            self.run.say(f"the configuration differs from the checkpoint's: {told}")
        if missing := {"fingerprint", "state", "training", "step", "best"} - content.keys():
            raise InputError(f"{folder / 'checkpoint.pth'} is no checkpoint of a training: it has no "
                             f"{', '.join(sorted(missing))}; put it back, or delete it to start anew")  # fmt: skip
        if content["fingerprint"] != self.dataset.fingerprint:
            raise InputError(f"--resume {folder}: {self.dataset.folder} is not the dataset it was trained on")
        fill(self.model, content["state"], folder)
        self.train_step.load_state_dict(content["training"])
        self.step, self.best = content["step"], content["best"]
        self.run.say(f"resuming {folder} after step {self.step} of {self.total}")
        return True

    def finish(self) -> Path:
        """weights.pth: the best on held-out identities where there are some, else the last."""
        chosen, path = self.weights(), self.run.folder / "weights.pth"
        if self.here.first:
            if self.validates:
                best = weights.load(self.run.folder / "best.pth")
                chosen["state"] = best["state"]
                self.run.say(f"kept the weights of step {best['step']}, held-out mAP {best['map']:.4f}")
            weights.save_weights(path, chosen)
            self.run.say(f"weights in {path}")
        wait()
        return path
