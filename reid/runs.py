"""Run folders and what every command needs around its work: the device, the log, atomic files."""

import json
import logging
import os
import platform
import re
import shutil
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

import torch

from reid.config import Config
from reid.errors import InputError, MissingInput
from reid.files import atomic_file, locked, write_json, writing
from reid.profiles import run_name
from reid.versions import commit, installed

logger = logging.getLogger(__name__)


class Run:
    """One run's folder: config.json, versions.json, log.txt, metrics.jsonl, TensorBoard events.

    Of several processes only the first writes; for the others (`silent`) all methods do nothing.
    """

    def __init__(self, folder: Path, silent: bool = False):
        self.folder = folder
        self.silent = silent
        self.events = None
        self.alone = ExitStack()
        if not silent:  # a run that is at work is not resumed beside itself
            self.alone.enter_context(locked(folder / "checkpoint.pth", waits=False))
            for stale in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                stale.unlink()

    @classmethod
    def open(cls, config: Config, first: bool = True) -> "Run":
        """A new run, or the one that config.resume means. Processes that are not the first call it after the first."""
        if config.resume:
            return cls(find_unfinished(config), not first)
        return cls.create(config) if first else cls(Path(config.exp_dir), silent=True)

    @classmethod
    def create(cls, config: Config) -> "Run":
        """A new folder exp_dir/dataset/name; where one exists a number is appended, and said."""
        parent, name = Path(config.exp_dir) / config.datasets, run_name(config)
        folder, number = parent / name, 1
        while folder.exists():
            number += 1
            folder = parent / f"{name}-{number}"
        if number > 1:
            before = parent / (f"{name}-{number - 1}" if number > 2 else name)
            state = "finished" if is_finished(before) else "unfinished, --resume would continue it"
            logger.info(f"{before} exists ({state}); this run goes to {folder}")
        with writing(folder):
            folder.mkdir(parents=True)
            write_json(folder / "config.json", config.to_json())
        return cls(folder)

    def note_versions(self, fingerprint: str) -> None:
        """Adds command, commit, packages, hardware and dataset fingerprint of this start to versions.json."""
        if self.silent:
            return
        path = self.folder / "versions.json"
        try:
            starts = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):  # the first start, or a file that a power cut left behind
            starts = []
        starts = starts if isinstance(starts, list) else []
        packages = {n: installed(n) for n in ("torch", "torchvision", "numpy", "pillow", "h5py")}
        starts.append(
            {
                "time": time.strftime("%Y-%m-%d %H:%M:%S"),
                "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
                "commit": commit(),
                "python": platform.python_version(),
                "packages": packages,
                "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
                "threads": torch.get_num_threads(),
                "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                "dataset_fingerprint": fingerprint,
            }
        )
        write_json(path, starts)

    def say(self, line: str) -> None:
        """A line on the screen and in log.txt."""
        if self.silent:
            return
        logger.info(line)
        with open(self.folder / "log.txt", "a") as f:
            f.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    def open_metrics(self, step: int) -> None:
        """Starts recording after `step`; lines beyond it, of a run that went on and was cut, are dropped."""
        if self.silent:
            return
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if step_of(line) <= step]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        try:
            with warnings.catch_warnings():  # tensorboardX touches protobuf and numpy names that warn
                warnings.simplefilter("ignore")
                from tensorboardX import SummaryWriter
            self.events = SummaryWriter(str(self.folder), purge_step=step)
        except ImportError:
            self.say("tensorboardX is not installed: no TensorBoard events (metrics.jsonl has the same numbers)")

    def record(self, step: int, values: dict[str, float]) -> None:
        if self.silent:
            return
        with open(self.folder / "metrics.jsonl", "a") as f:
            f.write(json.dumps({"step": step, **values}) + "\n")
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(name, value, step)

    def discard(self) -> None:
        """Takes a new run's folder away when no step of it is kept: bad input leaves none behind."""
        self.close()
        kept = [self.folder / name for name in ("checkpoint.pth", "metrics.jsonl")]
        if not self.silent and not any(path.exists() and path.stat().st_size for path in kept):
            shutil.rmtree(self.folder)

    def close(self) -> None:
        if self.events is not None:
            self.events.close()
        self.alone.close()


def step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite where it is cut short or damaged."""
    try:
        return json.loads(line)["step"] + 0
    except (ValueError, KeyError, TypeError):
        return float("inf")


def is_finished(folder: Path) -> bool:
    """weights.pth is the last thing a run writes."""
    return (folder / "weights.pth").is_file()


def find_unfinished(config: Config) -> Path:
    """The run that --resume means: the named folder, else the newest unfinished one of this name."""
    if config.resume != "newest":
        folder = Path(config.resume)
        if not (folder / "config.json").is_file():
            raise MissingInput(f"--resume {folder}: no run is there (no config.json)")
        if is_finished(folder):
            raise InputError(f"--resume {folder}: that run is finished; evaluate it, or start a new one")
        return folder
    parent, name = Path(config.exp_dir) / config.datasets, run_name(config)
    numbered = [p for p in parent.glob("*") if re.fullmatch(re.escape(name) + r"(-\d+)?", p.name)]
    unfinished = [f for f in numbered if (f / "config.json").is_file() and not is_finished(f)]
    folder = max(unfinished, key=lambda f: f.stat().st_mtime, default=None)
    if folder is None:
        raise MissingInput(
            f"--resume: no unfinished run {parent / name}; runs there: "
            f"{', '.join(sorted(p.name for p in parent.glob('*'))) or 'none'}"
        )
    return folder


def newest_weights(exp_dir: str, dataset: str) -> Path:
    """weights.pth of the newest finished run on a dataset."""
    parent = Path(exp_dir) / dataset
    found = max(parent.glob("*/weights.pth"), key=lambda f: f.stat().st_mtime, default=None)
    if found is None:
        raise MissingInput(
            f"no finished run under {parent}; train one with train.py, or name a file with --pretrained_weights_dir"
        )
    return found


def evaluation_folder(weights: Path, exp_dir: str, dataset: str) -> Path:
    """eval-<dataset> in the run folder of a run's weights.pth; exp_dir/dataset/eval-<weights file name> for others."""
    if weights.name == "weights.pth" and (weights.parent / "config.json").is_file():
        return weights.parent / f"eval-{dataset}"
    return Path(exp_dir) / dataset / f"eval-{weights.stem}"
