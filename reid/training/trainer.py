"""The training loop: batches -> losses -> step, a checkpoint after each epoch, validation where it is asked for."""

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from reid.config import Config
from reid.data.loader import ImageStore, in_order
from reid.data.prepare import open_dataset
from reid.data.records import Dataset, Image
from reid.data.sampler import SAMPLERS
from reid.data.transforms import augment, draw_augmentation, normalise
from reid.errors import InputError, Interrupted
from reid.evaluation.features import extract
from reid.evaluation.ranking import rank
from reid.losses import rrid_loss
from reid.models import build_model, fill
from reid.models.backbone import load_pretrained
from reid.models.rrid import check_height
from reid.runs import Run, autocast, find_unfinished, pick_device
from reid.training import checkpoint
from reid.training.schedule import rate_factor, total_steps


def train(config: Config) -> Path:
    """Trains by the configuration and returns the weights file; continues a run when config.resume says so.

    Raises InputError for bad input, FloatingPointError when a loss is not finite, Interrupted on a signal.
    """
    check_height(config.h, config.stripes)
    device = pick_device(config.gpus)
    dataset = open_dataset(config.dataset_type, config.dataset_path, config.split)
    run = Run(find_unfinished(config)) if config.resume else Run.create(config)
    trainer = Trainer(config, dataset, run, device)
    if config.resume:
        trainer.resume()
    else:
        run.say(load_pretrained(trainer.model.base, config.backbone, config.pretrained))
    try:
        with signals_noted() as signals:
            return trainer.run_all(signals)
    finally:
        run.close()


class Trainer:
    """Model, optimiser and data of one run, and how far it has come (`step`)."""

    def __init__(self, config: Config, dataset: Dataset, run: Run, device: torch.device):
        self.config, self.dataset, self.run, self.device = config, dataset, run, device
        self.images, self.held_out = dataset.trainval, []
        if config.train_set == "train":
            self.images, self.held_out = dataset.hold_out(config.num_val)
        self.pids = [image.pid for image in self.images]
        self.classes = sorted(set(self.pids))
        label_of = {pid: i for i, pid in enumerate(self.classes)}
        self.labels = torch.tensor([label_of[pid] for pid in self.pids], device=device)

        torch.manual_seed(config.seed)
        self.model = build_model(config, len(self.classes)).to(device, memory_format=torch.channels_last)
        backbone = list(self.model.base.parameters())
        heads = [p for name, p in self.model.named_parameters() if not name.startswith("base.")]
        self.optimizer = torch.optim.SGD(
            [{"params": backbone, "base": config.base_lr}, {"params": heads, "base": config.lr}],
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )

        self.steps_in_epoch = len(self.epoch_batches(1))
        self.total = total_steps(config, self.steps_in_epoch)
        self.step = 0  # steps done
        self.best: float | None = None  # mAP on the held-out identities

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        c = self.config
        return SAMPLERS[c.sampler](self.pids, c.batch_size, c.batch_sample, c.seed, epoch)

    def run_all(self, signals: list[int]) -> Path:
        """Every remaining step; weights.pth at the end."""
        c, say = self.config, self.run.say
        say(f"run folder {self.run.folder}")
        say(str(self.dataset))
        say(
            f"training on {len(self.images)} images of {len(self.classes)} identities: {self.total} steps, "
            f"{self.steps_in_epoch} an epoch, on {self.device}"
        )
        self.run.note_versions(self.dataset.fingerprint)
        store = ImageStore(self.images, c.h, c.w, c.num_workers, c.cache, self.device)
        self.run.open_metrics(self.step)
        started, before = time.monotonic(), self.step
        with tqdm(total=self.total, initial=self.step, desc="training", unit=" steps", disable=None) as bar:
            while self.step < self.total:
                self.one_epoch(store, bar, signals)
        seconds = time.monotonic() - started
        rate = (self.step - before) * c.batch_size / max(seconds, 1e-9)
        say(f"trained {self.step - before} steps in {seconds:.0f} s, {rate:.1f} images/s")
        self.run.record(self.step, {"images_per_second": rate})
        return self.finish()

    def one_epoch(self, store: ImageStore, bar: tqdm, signals: list[int]) -> None:
        """What is left of the epoch that `step` stands in."""
        epoch, done = self.step // self.steps_in_epoch + 1, self.step % self.steps_in_epoch
        batches = self.epoch_batches(epoch)[done : done + self.total - self.step]
        sums: dict[str, Tensor] = {}
        counted = 0
        for indices, pixels in zip(batches, store.batches(batches), strict=True):
            terms = self.one_step(self.prepare(pixels, epoch), self.labels[torch.as_tensor(indices)])
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value
            counted += 1
            bar.update()
            if self.step % self.config.print_freq == 0:
                bar.set_postfix({k: f"{v.item():.2f}" for k, v in terms.items()})
            if self.step % self.config.steps_per_log == 0 or self.step == self.total:
                self.log(epoch, {k: v.item() / counted for k, v in sums.items()})
                sums, counted = {}, 0
            if signals:
                self.save()
                name = signal.Signals(signals[0]).name
                raise Interrupted(
                    f"stopped by {name} after step {self.step} of {self.total}; "
                    f"continue with: python train.py --resume {self.run.folder}"
                )
        last = self.step == self.total
        if self.held_out and (last or epoch % self.config.eval_every == 0):
            self.validate(epoch)
        self.save()

    def prepare(self, pixels: Tensor, epoch: int) -> Tensor:
        """uint8 -> augmented, normalised float32; randomness from (seed, epoch, step)."""
        c = self.config
        rng = np.random.default_rng([c.seed, epoch, self.step])
        drawn = draw_augmentation(rng, len(pixels), c.h, c.w, c.erasing_probability, c.erasing)
        return normalise(augment(pixels, drawn))

    def one_step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Forward, losses, backward, update. Images (N, 3, H, W) float32, labels (N,)."""
        factor = rate_factor(self.config, self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["base"]
        self.model.train()
        with autocast(self.config.precision, self.device):
            features, logits = self.model(images)
        loss, terms = rrid_loss(features, logits, labels, self.config.margin)
        if not torch.isfinite(loss):
            shown = ", ".join(f"{k} {v.item()}" for k, v in terms.items())
            raise FloatingPointError(
                f"the loss is not finite at step {self.step + 1}: {shown}; nothing was updated. "
                "Lower --lr, or add --warmup_steps"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return {"loss": loss.detach(), **terms}

    def log(self, epoch: int, means: dict[str, float]) -> None:
        rate = self.optimizer.param_groups[1]["lr"]
        self.run.record(self.step, {"epoch": epoch, "lr": rate, **means})
        shown = "  ".join(f"{k} {v:.3f}" for k, v in means.items())
        self.run.say(f"step {self.step}/{self.total}  epoch {epoch}  lr {rate:.2g}  {shown}")

    def validate(self, epoch: int) -> None:
        """Held-out identities as query and gallery across cameras; the best weights are kept in best.pth."""
        distance, pids, camids = held_out_distances(self.model, self.held_out, self.config, self.device)
        result = rank(distance, pids, pids, camids, camids)
        if np.isnan(result.mean_ap):
            raise InputError("no held-out image has a match in another camera: --train_set train needs two cameras")
        self.run.record(self.step, {"val_map": result.mean_ap, "val_rank1": float(result.cmc[0])})
        better = self.best is None or result.mean_ap > self.best
        self.run.say(
            f"epoch {epoch}  held-out mAP {result.mean_ap:.4f}  Rank-1 {result.cmc[0]:.4f}"
            + ("  (best so far)" if better else "")
        )
        if better:
            self.best = result.mean_ap
            checkpoint.save(self.run.folder / "best.pth", {**self.weights(), "step": self.step, "map": self.best})

    def weights(self) -> dict[str, Any]:
        return {"config": self.config.to_json(), "classes": len(self.classes), "state": self.model.state_dict()}

    def save(self) -> None:
        progress = {"step": self.step, "best": self.best, "fingerprint": self.dataset.fingerprint}
        content = {**self.weights(), "optimizer": self.optimizer.state_dict(), **progress}
        checkpoint.save(self.run.folder / "checkpoint.pth", content)

    def resume(self) -> None:
        """Continues where checkpoint.pth stands. Raises InputError when it is another training."""
        path = self.run.folder / "checkpoint.pth"
        if not path.exists():  # stopped before the first one: start again in the same folder
            self.run.say(f"no checkpoint in {self.run.folder} yet: starting from step 0")
            self.run.say(load_pretrained(self.model.base, self.config.backbone, self.config.pretrained))
            return
        content = checkpoint.load(path)
        stored = Config.from_json(content["config"], str(path))
        if changed := self.config.changes(stored):
            told = ", ".join(f"{k} {getattr(stored, k)} -> {v}" for k, v in changed.items())
            raise InputError(
                f"--resume {self.run.folder}: the configuration differs: {told}; "
                "repeat the flags of that run, or start a new one without --resume"
            )
        if content["fingerprint"] != self.dataset.fingerprint:
            raise InputError(f"--resume {self.run.folder}: {self.dataset.folder} is not the dataset it was trained on")
        fill(self.model, content["state"], path)
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.best = content["step"], content["best"]
        self.run.say(f"resuming {self.run.folder} after step {self.step} of {self.total}")

    def finish(self) -> Path:
        """weights.pth: the best on held-out identities where there are some, else the last."""
        chosen = self.weights()
        if self.held_out:
            best = checkpoint.load(self.run.folder / "best.pth")
            chosen["state"] = best["state"]
            self.run.say(f"kept the weights of step {best['step']}, held-out mAP {best['map']:.4f}")
        path = self.run.folder / "weights.pth"
        checkpoint.save_weights(path, chosen)
        self.run.say(f"weights in {path}")
        return path


def held_out_distances(model: nn.Module, images: list[Image], config: Config, device: torch.device):
    """Squared distances of all images to each other, pids, camids."""
    model.eval()
    store = ImageStore(images, config.h, config.w, config.num_workers, device=device)
    batches = store.batches(in_order(len(images), config.batch_size))
    features = extract(model, batches, len(images), device, precision=config.precision)
    pids, camids = np.array([i.pid for i in images]), np.array([i.camid for i in images])
    return 2 - 2 * features @ features.T, pids, camids


class signals_noted:
    """SIGINT and SIGTERM are noted in a list, for the loop to end after its step; the second ends at once."""

    def __enter__(self) -> list[int]:
        received: list[int] = []

        def note(number: int, frame) -> None:
            received.append(number)
            tqdm.write("stopping after this step (once more to stop at once)")
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

        self.before: dict[int, Any] = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
        return received

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
