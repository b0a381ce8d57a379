"""python -m reid ablate: one factor at a time from a full model, or a whole grid; each cell a run of its own.

Cells that are finished are skipped, cells that were stopped go on, a broken one is told and does not end the others.
"""

import itertools
import json
import os
import subprocess
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from reid.commands.flags import add_flags, given_flags, to_flags
from reid.commands.table import show
from reid.config import Config, closest
from reid.data.prepare import folder_of
from reid.errors import InputError, Interrupted
from reid.evaluation.record import USUAL, read_record
from reid.files import locked
from reid.models.layers import check_height
from reid.models.tensors import digest
from reid.profiles import from_flags, profile, run_name
from reid.report.table import check_csv, read_runs
from reid.runs import is_finished
from reid.signals import child_options, signals_noted, stop_child

SOURCE = Path(__file__).resolve().parents[2]  # the folder that holds the package reid


class Cell(NamedTuple):
    name: str
    config: Config


class Impossible(NamedTuple):
    name: str
    reason: str


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--vary", action="append", required=True, metavar="FIELD=A,B,C",
        help='values of a training flag; of several numbers each: "stripes=6,4 2"; may be given several times',
    )  # fmt: skip
    parser.add_argument("--grid", action="store_true", help="every combination of the values")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds for each cell, from --seed on")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at the same time (default 1)")
    parser.add_argument("--dry_run", action="store_true", help="only list the cells")
    parser.add_argument("--csv", default="", metavar="FILE", help="the table also as CSV")
    add_flags(parser, "train")


def main(arguments) -> int:
    """Exit codes: 0 every cell is scored, 1 some are impossible or broke."""
    a = arguments
    given = {k: v for k, v in given_flags(a).items() if k != "debug"}
    for name in ("seeds", "jobs"):
        if getattr(a, name) < 1:
            raise InputError(f"--{name} {getattr(a, name)} is too small; the least is 1")
    for name in ("name", "resume", "allow_changes"):
        if name in given:
            raise InputError(f"--{name} belongs to a single run; ablate names its cells and continues them by itself")
    if a.csv:
        check_csv(Path(a.csv))  # before the long work
    cells, impossible = plan(given, [parse_vary(text) for text in a.vary], a.grid, a.seeds)
    if not cells:
        raise InputError(impossible[0].reason)
    for cell in cells:
        state = "finished" if (f := find_run(cell.config)) and is_finished(f) else "to continue" if f else "to do"
        print(f"{state:<12}{cell.name}")
    for name, reason in impossible:
        print(f"impossible  {name}: {reason}")
    if a.dry_run:
        return 1 if impossible else 0
    broken = run_cells(cells, a.jobs)
    for name, reason in broken:
        print(f"broken      {name}: {reason}")
    folders = [f for cell in cells if (f := find_run(cell.config))]
    if folders:
        show(*read_runs(folders), a.csv)
    return 1 if impossible or broken else 0


def parse_vary(text: str) -> tuple[str, list[Any]]:
    """'stripes=6,4 2' -> ('stripes', [(6,), (4, 2)]). Raises InputError."""
    name, _, values = text.partition("=")
    known = {f.name: f for f in fields(Config) if f.metadata["room"] != "run" or f.name == "profile"}
    known = {k: f for k, f in known.items() if "train" in f.metadata["scripts"]}
    if name not in known or not all(value.strip() for value in values.split(",")):
        near = "" if name in known else closest(name, [*known])
        raise InputError(f"--vary {text!r}: expected FIELD=A,B with a training flag{near}, "
                         'for example --vary "stripes=6,4 2"')  # fmt: skip
    f = known[name]
    many = isinstance(f.default, tuple)
    kind = type(f.default[0] if many else f.default)
    try:
        if kind is bool:
            return name, [{"true": True, "false": False}[v.strip().lower()] for v in values.split(",")]
        if many:
            return name, [tuple(kind(x) for x in v.split()) for v in values.split(",")]
        return name, [kind(v.strip()) for v in values.split(",")]
    except (ValueError, KeyError) as e:
        raise InputError(f"--vary {text!r}: {name} takes values like {f.default}") from e


def plan(
    given: dict[str, Any], factors: list[tuple[str, list[Any]]], grid: bool, seeds: int
) -> tuple[list[Cell], list[Impossible]]:
    """Cells without repetition, the full model first, and those that cannot be run."""
    names = [name for name, _ in factors]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"--vary {twice.pop()} is given twice; list all its values in one")
    if grid:
        changes = [dict(zip(names, values)) for values in itertools.product(*(values for _, values in factors))]
    else:
        changes = [{}] + [{name: value} for name, values in factors for value in values]
    cells: dict[Config, str] = {}
    impossible: dict[str, str] = {}
    for change in changes:
        told = ", ".join(f"{k} {' '.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in change.items())
        try:
            base = from_flags(given | change)
            check_height(base.h, base.stripes)
        except InputError as e:
            impossible[told or "full model"] = str(e)
            continue
        for seed in range(base.seed, base.seed + seeds):
            config = from_flags(given | change | {"seed": seed})
            cells.setdefault(config, run_name(config))
    return [Cell(name, config) for config, name in cells.items()], [Impossible(*x) for x in impossible.items()]


def find_run(config: Config) -> Path | None:
    """The folder of a run of this configuration, a finished one first."""
    found = []
    for path in sorted(Path(config.exp_dir, config.datasets).glob("*/config.json")):
        try:
            stored = Config.from_json(json.loads(path.read_text()), str(path))
        except (InputError, ValueError):
            continue  # another version's
        if not stored.changes(config) and not config.changes(stored):
            found.append(path.parent)
    return next((f for f in found if is_finished(f)), found[0] if found else None)


def run_cells(cells: list[Cell], jobs: int) -> list[Impossible]:
    """Trains and scores what is missing; returns what broke. On a signal the cells save, and Interrupted is raised."""
    broken: list[Impossible] = []
    children: set[subprocess.Popen] = set()
    stopped = threading.Event()

    def work(cell: Cell) -> None:
        try:
            with locked(work_place(cell), waits=False):
                for argv in commands(cell.config):
                    code, last = run_command(argv, children, quiet=jobs > 1) if not stopped.is_set() else (0, "")
                    if code and not stopped.is_set():
                        broken.append(Impossible(cell.name, f"exit code {code}: {last}"))
                        return
        except InputError as e:
            broken.append(Impossible(cell.name, str(e)))

    with signals_noted() as signals, ThreadPoolExecutor(jobs) as pool, tqdm(total=len(cells), unit=" cells") as bar:
        waiting: set[Future] = {pool.submit(work, cell) for cell in cells}
        while waiting:
            done, waiting = wait(waiting, timeout=0.2)
            for future in done:
                bar.update()
                future.result()
            if signals and not stopped.is_set():
                stopped.set()
                for child in list(children):
                    stop_child(child)
    if stopped.is_set():
        raise Interrupted("stopped; the same command continues where each cell stands")
    return broken


def work_place(cell: Cell) -> Path:
    """What stands for a cell while it is at work: its name, and what two cells of one name differ in."""
    return Path(cell.config.exp_dir, cell.config.datasets, f"{cell.name}-{digest(cell.config.to_json())[:8]}")


def commands(config: Config) -> Iterator[list[str]]:
    """What is still to be run for a configuration; the second is made when the first is done."""
    folder = find_run(config)
    if folder is None:
        base = profile(config.profile, config.model)
        named = ["--profile", config.profile, "--model", config.model]
        yield ["train", *named, *to_flags(config, base)]
    elif not is_finished(folder):
        yield ["train", "--resume", str(folder)]
    folder = find_run(config)
    if folder is None or not is_finished(folder):
        return
    if {folder_of(name, "").name for name in config.dataset_type} <= scored_datasets(folder, config):
        return
    where = ["--dataset_path", config.dataset_path, "--exp_dir", config.exp_dir, "--split", str(config.split)]
    workers = ["--num_workers", str(config.num_workers), "--device", config.device]
    workers += ["--gpus", *map(str, config.gpus)] if config.gpus else []
    yield ["evaluate", "--weights", str(folder / "weights.pth"), *where, *workers]


def scored_datasets(folder: Path, config: Config) -> set[str | None]:
    """Datasets on which a run was scored as it was trained, with default scoring."""
    found = set()
    for path in folder.glob("eval-*/result.json"):
        with suppress(InputError):  # of an older version, or damaged: scored again
            r = read_record(path)
            if (r.split, r.h, r.w, r.covered, r.scoring) == (config.split, config.h, config.w, 0, USUAL):
                found.add(r.dataset)
    return found


def run_command(argv: list[str], children: set[subprocess.Popen], quiet: bool) -> tuple[int, str]:
    """(exit code, last line said) of one of the project's commands; its progress is shown unless quiet."""
    command = [sys.executable, "-m", "reid", *argv]
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    # a session of its own: a signal of the terminal reaches it once, through us
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **child_options(),
        env={**os.environ, "PYTHONPATH": path},
    ) as child:
        children.add(child)
        last = b""
        assert child.stderr is not None
        while chunk := child.stderr.read1(4096):  # type: ignore[attr-defined]
            last = (last + chunk)[-2000:]
            if not quiet:
                sys.stderr.write(chunk.decode(errors="replace"))
                sys.stderr.flush()
        code = child.wait()
    children.discard(child)
    lines = last.decode(errors="replace").replace("\r", "\n").split("\n")
    return code, next((line.strip() for line in reversed(lines) if line.strip()), "")
