"""Run folders: configuration, log, metrics and events of one training, and the search for runs."""

import json
import logging
import shutil
import time
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from reid.config import Config
from reid.errors import InputError, MissingInput
from reid.files import atomic_file, locked, write_json, writing
from reid.profiles import run_name

logger = logging.getLogger(__name__)

MOST_NAMED = 5  # runs in a message
LONGER = "longer"  # an empty file in a finished run until it has been trained longer


class Run:
    """The folder of one run: config.json, versions.json, log.txt, metrics.jsonl, TensorBoard events.

    Only rank 0 writes. In the other processes the run is `silent`, and its methods do nothing.
    """

    def __init__(self, folder: Path, silent: bool = False):
        self.folder = folder
        self.silent = silent
        self.events: Any = None
        self.lock = ExitStack()
        if not silent:  # two processes must not train the same run
            self.lock.enter_context(locked(folder / "checkpoint.pth", waits=False))
            for stale in folder.glob(".*.tmp"):  # left by a process that was killed while writing
                stale.unlink()

    @classmethod
    def open(cls, config: Config, first: bool = True) -> "Run":
        """A new run, or the run that config.resume names. Rank 0 calls it before the other processes."""
        if config.resume:
            return cls(find_unfinished(config), not first)
        return cls.create(config) if first else cls(Path(config.exp_dir), silent=True)

    @classmethod
    def create(cls, config: Config) -> "Run":
        """A new folder exp_dir/dataset/name. If it exists, a number is appended to the name and this is logged."""
        parent, name = Path(config.exp_dir) / config.datasets, run_name(config)
        before, folder, number = None, parent / name, 1
        while folder.exists():
            number += 1
            before, folder = folder, parent / f"{name}-{number}"
        if before is not None:
            state = "finished" if is_finished(before) else "unfinished; --resume continues it"
            logger.info(f"{before} exists ({state}); this run is written to {folder}")
        with writing(folder):
            folder.mkdir(parents=True)
            write_json(folder / "config.json", config.to_json())
        return cls(folder)

    def lengthen(self, config: Config) -> None:
        """Makes a finished run unfinished, with a configuration of more steps. Its weights.pth stays for now."""
        if self.silent:
            return
        (self.folder / LONGER).touch()
        own = replace(config, resume="", allow_changes=False)  # of this command alone
        write_json(self.folder / "config.json", own.to_json())

    def set_results_aside(self, step: int) -> None:
        """Moves the evaluations of the weights after `step`, which new weights replace, to until-step-N."""
        for folder in sorted(self.folder.glob("eval-*")):
            place = self.folder / f"until-step-{step}"
            place.mkdir(exist_ok=True)
            target, number = place / folder.name, 1
            while target.exists():
                number += 1
                target = place / f"{folder.name}-{number}"
            folder.rename(target)
            self.say(f"results of the weights after step {step} are now in {target}")

    def end_lengthening(self) -> None:
        """Makes a run that was trained longer finished again."""
        (self.folder / LONGER).unlink(missing_ok=True)

    def say(self, line: str) -> None:
        """Logs a line and appends it to log.txt."""
        if self.silent:
            return
        logger.info(line)
        with open(self.folder / "log.txt", "a", encoding="utf-8") as f:
            f.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    def open_metrics(self, step: int) -> None:
        """Starts recording after `step`. Lines of later steps, which resuming repeats, are dropped."""
        if self.silent:
            return
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if step_of(line) <= step]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        try:
            with warnings.catch_warnings():  # tensorboardX uses deprecated names of protobuf and numpy
                warnings.simplefilter("ignore")
                from tensorboardX import SummaryWriter
            self.events = SummaryWriter(str(self.folder), purge_step=step)
        except ImportError:
            self.say("tensorboardX is not installed: no TensorBoard events (metrics.jsonl has the same numbers)")

    def record(self, step: int, values: dict[str, float]) -> None:
        """Appends a line to metrics.jsonl and the same numbers to the events."""
        if self.silent:
            return
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, **values}) + "\n")
        if self.events is not None:
            for name, value in values.items():
                self.events.add_scalar(name, value, step)

    def discard(self) -> None:
        """Removes the folder of a new run without a recorded step, so that bad input leaves nothing behind."""
        self.close()
        kept = [self.folder / name for name in ("checkpoint.pth", "metrics.jsonl")]
        if not self.silent and not any(path.exists() and path.stat().st_size for path in kept):
            shutil.rmtree(self.folder)

    def close(self) -> None:
        """Closes the events and releases the lock."""
        if self.events is not None:
            self.events.close()
        self.lock.close()


def step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite if the line is damaged."""
    try:
        return json.loads(line)["step"] + 0
    except (ValueError, KeyError, TypeError):
        return float("inf")


def is_finished(folder: Path) -> bool:
    """Whether the run has written weights.pth, its last file, and is not being trained longer."""
    return (folder / "weights.pth").is_file() and not (folder / LONGER).exists()


def read_config(folder: Path) -> Config:
    """The configuration of a run. Raises MissingInput, and InputError if config.json cannot be used."""
    path = folder / "config.json"
    if not path.is_file():
        raise MissingInput(f"{folder} is not a run folder: it has no config.json")
    try:
        return Config.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
    except ValueError as e:
        raise InputError(f"{path} is not valid JSON ({e}); restore it from a copy") from e


def runs_of(config: Config) -> list[tuple[Path, Config]]:
    """Folder and configuration of every readable run on the datasets of `config`, sorted by folder."""
    found = []
    for path in sorted(Path(config.exp_dir, config.datasets).glob("*/config.json")):
        try:
            stored = read_config(path.parent)
            run_name(stored)  # raises InputError for an unknown profile
            found.append((path.parent, stored))
        except InputError:
            continue  # written by another version
    return found


def find_unfinished(config: Config) -> Path:
    """The run that --resume selects: the given folder, or the newest unfinished run of this name.

    The name comes from the stored configuration, so a renamed folder is also found.
    """
    if config.resume != "newest":
        folder = Path(config.resume)
        stored = read_config(folder)
        if is_finished(folder) and (config.epochs, config.max_steps) == (stored.epochs, stored.max_steps):
            raise InputError(
                f"--resume {folder}: this run is finished; evaluate it, or give a greater --epochs or --max_steps "
                "to train it longer"
            )
        return folder
    name = run_name(config)
    unfinished = {f: run_name(stored) for f, stored in runs_of(config) if not is_finished(f)}
    named = [f for f in unfinished if unfinished[f] == name]
    if not named:
        raise MissingInput(
            f"--resume: {Path(config.exp_dir, config.datasets)} has no unfinished run named {name}; "
            f"unfinished runs there: {', '.join(sorted({*unfinished.values()})) or 'none'}"
        )
    return max(named, key=lambda f: f.stat().st_mtime)


def newest_weights(exp_dir: str, dataset: str | None = None) -> Path:
    """weights.pth of the newest finished run, on a dataset or on any. Raises MissingInput with the runs on others."""
    found = sorted(Path(exp_dir).glob("*/*/weights.pth"), key=lambda f: f.stat().st_mtime, reverse=True)
    wanted = [path for path in found if dataset in (None, path.parent.parent.name)]
    if wanted:
        return wanted[0]
    place = exp_dir if dataset is None else Path(exp_dir) / dataset
    stopped = [path.parent for path in sorted(Path(place).glob("*/checkpoint.pth")) if not is_finished(path.parent)]
    if stopped:
        raise MissingInput(
            f"no finished run under {place}, but {stopped[0]} was stopped; continue it with: "
            f"python train.py --resume {stopped[0]}, or name a file with --weights"
        )
    if not found:
        raise MissingInput(f"no finished run under {place}; train one with train.py, or name a file with --weights")
    names = ", ".join(path.as_posix() for path in found[:MOST_NAMED])
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    raise MissingInput(f"no finished run under {place}; name one of these with --weights: {names}{more}")


def evaluation_folder(weights: Path, exp_dir: str, dataset: str) -> Path:
    """eval-<dataset> in the run folder of a run's weights.pth; exp_dir/dataset/eval-<weights file name> for others."""
    if weights.name == "weights.pth" and (weights.parent / "config.json").is_file():
        return weights.parent / f"eval-{dataset}"
    return Path(exp_dir) / dataset / f"eval-{weights.stem}"
