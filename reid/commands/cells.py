"""The cells of an ablation: their configurations, and the commands that each still needs.

Every cell is a run. Finished cells are skipped, stopped cells are continued, and a cell that
fails does not stop the others.
"""

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from reid.commands.children import Children
from reid.commands.flags import to_flags
from reid.config import Config, in_words
from reid.data.prepare import folder_of
from reid.errors import InputError, Interrupted
from reid.evaluation.record import USUAL, read_record
from reid.files import locked
from reid.models.layers import check_height
from reid.models.tensors import digest
from reid.profiles import from_flags, profile, run_name
from reid.runs import is_finished, runs_of
from reid.signals import signals_noted

Factor = tuple[str, list[Any]]  # a field and its values


class Cell(NamedTuple):
    name: str
    config: Config


class Failed(NamedTuple):
    """A cell that cannot be run, or that ended with an error."""

    name: str
    reason: str


def plan(given: dict[str, Any], factors: list[Factor], grid: bool, seeds: int) -> tuple[list[Cell], list[Failed]]:
    """(the distinct cells, full model first; the cells that cannot be run). Raises InputError."""
    name, count = Counter(name for name, _ in factors).most_common(1)[0]
    if count > 1:
        raise InputError(f"--vary {name} is given twice; list all its values in one --vary")
    cells: dict[Config, str] = {}
    impossible = []
    for change in changes(factors, grid):
        try:
            base = from_flags(given | change)
            check_height(base.h, base.stripes)
        except InputError as e:
            impossible.append(Failed(in_words(change) or "full model", str(e)))
            continue
        for seed in range(base.seed, base.seed + seeds):
            config = from_flags(given | change | {"seed": seed})
            cells.setdefault(config, run_name(config))
    return [Cell(name, config) for config, name in cells.items()], impossible


def changes(factors: list[Factor], grid: bool) -> list[dict[str, Any]]:
    """Every combination of values; without `grid` no changes, for the full model, and each value alone."""
    if not grid:
        return [{}] + [{name: value} for name, values in factors for value in values]
    names, values = zip(*factors)
    return [dict(zip(names, combination)) for combination in itertools.product(*values)]


def find_run(config: Config) -> Path | None:
    """The folder of a run of this configuration, a finished one first."""
    found = [folder for folder, stored in runs_of(config) if not stored.changes(config)]
    return max(found, key=is_finished, default=None)


def state(config: Config) -> str:
    folder = find_run(config)
    if folder is None:
        return "to do"
    return "finished" if is_finished(folder) else "to continue"


def commands(config: Config) -> Iterator[list[str]]:
    """The commands that a configuration still needs; the second depends on the first's result."""
    folder = find_run(config)
    if folder is None:
        base = profile(config.profile, config.model)
        named = ["--profile", config.profile, "--model", config.model]
        yield ["train", *named, *to_flags(config, base)]
    elif not is_finished(folder):
        yield ["train", "--resume", str(folder)]
    folder = find_run(config)
    if folder is None or not is_finished(folder) or is_scored(folder, config):
        return
    command = ["evaluate", "--weights", str(folder / "weights.pth")]
    for name in ("dataset_path", "exp_dir", "split", "num_workers", "device"):
        command += [f"--{name}", str(getattr(config, name))]
    if config.gpus:
        command += ["--gpus", *map(str, config.gpus)]
    yield command


def is_scored(folder: Path, config: Config) -> bool:
    """Whether a run has a result on each of its datasets, as it was trained and with default scoring."""
    scored = set()
    for path in folder.glob("eval-*/result.json"):
        with suppress(InputError):  # of an older version, or damaged: scored again
            record = read_record(path)
            same = (record.split, record.h, record.w) == (config.split, config.h, config.w)
            if same and not record.covered and record.scoring == USUAL:
                scored.add(record.dataset)
    return {folder_of(name, "").name for name in config.dataset_type} <= scored


def run_cells(cells: list[Cell], jobs: int) -> list[Failed]:
    """Runs the missing commands of `jobs` cells at a time; returns the cells that failed.

    Raises Interrupted after a signal, once the running cells have saved their work.
    """
    failed: list[Failed] = []
    children = Children(quiet=jobs > 1, threads=threads_of(jobs))

    def work(cell: Cell) -> None:
        try:
            with locked(work_place(cell), waits=False):
                for argv in commands(cell.config):
                    code, message = children.run(argv)
                    if children.stopped:
                        return
                    if code:
                        failed.append(Failed(cell.name, f"exit code {code}: {message}"))
                        return
        except InputError as e:
            failed.append(Failed(cell.name, str(e)))

    bar = tqdm(total=len(cells), unit=" cells")
    with signals_noted() as signals, ThreadPoolExecutor(jobs) as pool, bar:
        waiting: set[Future] = {pool.submit(work, cell) for cell in cells}
        while waiting:
            done, waiting = wait(waiting, timeout=0.2)
            for future in done:
                bar.update()
                future.result()
            if signals and not children.stopped:
                children.stop()
    if children.stopped:
        raise Interrupted("stopped; run the same command again to continue every cell")
    return failed


def threads_of(jobs: int) -> int:
    """CPU threads of each of several jobs, their share of the cores; 0 for one job, or if $OMP_NUM_THREADS is set."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return 0
    return max(1, (os.cpu_count() or 1) // jobs)


def work_place(cell: Cell) -> Path:
    """The path that is locked while the cell runs. Cells with equal names differ in the digest."""
    name = f"{cell.name}-{digest(cell.config.to_json())[:8]}"
    return Path(cell.config.exp_dir, cell.config.datasets, name)
