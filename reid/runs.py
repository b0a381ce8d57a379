"""Run folders and what every command needs around its work: the device, the log, atomic files."""

import ctypes
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from reid.config import Config
from reid.errors import InputError, MissingInput
from reid.processes import world
from reid.profiles import run_name

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_memory() -> None:
    """Lets glibc keep what is freed, for this process: it hands each large tensor back to the kernel otherwise, which
    clears its pages anew for the next batch, and a small network's forward pass takes up to twice as long."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    if mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 1 << 25):  # the most that older glibcs take
        mallopt(M_TRIM_THRESHOLD, -1)  # alone it would make it slower


def pick_device(gpus: tuple[int, ...]) -> torch.device:
    """The CUDA device asked for; the CPU, with one warning line, where there is no CUDA."""
    if not torch.cuda.is_available():
        if world().first:
            print(
                f"warning: no CUDA device here, so --gpus {' '.join(map(str, gpus))} runs on the CPU", file=sys.stderr
            )
        keep_memory()
        return torch.device("cpu")
    count, here = torch.cuda.device_count(), world()
    if here.size > 1 and len(gpus) < here.size:  # torchrun without --gpus: a device each
        gpus = tuple(range(count))
    number = gpus[here.local] if here.local < len(gpus) else count
    if number >= count:
        raise InputError(
            f"--gpus {' '.join(map(str, gpus))}: this machine has devices 0 to {count - 1}, and each of "
            "its processes needs one"
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    torch.backends.cudnn.deterministic = True  # the same seed gives the same bits
    return device


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Context in which the backbone runs in `precision` (auto: bf16 on CUDA, fp32 on the CPU)."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; what was written there replaces `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the rename itself must survive a power cut
        folder = os.open(path.parent, os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around work that writes `path`: what the system refuses becomes an InputError."""
    try:
        yield
    except InputError:
        raise
    except OSError as e:
        reason = os.strerror(e.errno) if e.errno else str(e).split("\n")[0]
        raise InputError(f"{path} cannot be written ({reason}); make room there, or give another place") from e


@contextmanager
def locked(path: Path, waits: bool = True) -> Iterator[None]:
    """Alone among processes at what `path` stands for, by a lock file beside it; a killed process lets go of it.

    Where another one is there, waits for it and says so, or raises InputError.
    """
    lock, held = path.with_name(path.name + ".lock"), False
    while not held:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = lock.open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waits:
                    raise InputError(
                        f"another process is at work on {path}; type the same again when it is done"
                    ) from None
                print(f"waiting for another process that changes {path}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as e:  # some network file systems have none
                print(f"warning: no locks in {path.parent} ({e}); keep other processes away from it", file=sys.stderr)
            with suppress(FileNotFoundError):  # the lock of a process that was done meanwhile
                held = os.path.samestat(os.fstat(file.fileno()), lock.stat())
            if held:
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


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
            print(f"{before} exists ({state}); this run goes to {folder}")
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
        tqdm.write(line)
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


def evaluation_folder(weights: Path, exp_dir: str, dataset: str, changed: dict[str, Any]) -> Path:
    """eval-<dataset> in the run folder of a run's weights.pth, else exp_dir/dataset/eval-<weights file name>, so that
    another file beside it never stands for the run; with the settings `changed` from those of the weights."""
    words = "".join(f"_{k}-{v}" for k, v in changed.items())
    if weights.name == "weights.pth" and (weights.parent / "config.json").is_file():
        return weights.parent / f"eval-{dataset}{words}"
    return Path(exp_dir) / dataset / f"eval-{weights.stem}{words}"


def installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the source, with '+' when files differ from it; None outside a checkout."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip() + ("+" if changed.stdout else "")
