"""python -m reid ablate: vary one factor at a time, or a whole grid; every cell is a run."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from reid.commands.flags import add_flags, check_counts, given_flags
from reid.config import Config, closest, value_text
from reid.errors import InputError

BOOLEANS = {"true": True, "false": False}


def add_arguments(parser) -> None:
    parser.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="FIELD=A,B,C",
        help='values of a training flag, for example "stripes=6,4 2"; can be repeated',
    )
    parser.add_argument("--grid", action="store_true", help="run every combination of the values")
    for name, text in (("seeds", "seeds per cell, starting at --seed"), ("jobs", "cells to run in parallel")):
        parser.add_argument(f"--{name}", type=int, default=1, metavar="N", help=f"{text} (default 1)")
    parser.add_argument("--dry_run", action="store_true", help="only list the cells")
    parser.add_argument("--csv", default="", metavar="FILE", help="also write the table as CSV")
    add_flags(parser, "train")


def main(arguments) -> int:
    """Exit codes: 0 every cell is scored, 1 some are impossible or failed, 2 bad input."""
    a = arguments
    given = checked(a)
    factors = [parse_vary(text) for text in a.vary]
    from reid.commands import cells as c  # imports torch, so only after the flags are checked
    from reid.commands.table import show
    from reid.report.table import check_csv, read_runs

    if a.csv:
        check_csv(Path(a.csv))  # raises before the long work
    cells, impossible = c.plan(given, factors, a.grid, a.seeds)
    if not cells:
        raise InputError(impossible[0].reason)
    for cell in cells:
        print(f"{c.state(cell.config):<12}{cell.name}")
    for name, reason in impossible:
        print(f"impossible  {name}: {reason}")
    if a.dry_run:
        return 1 if impossible else 0
    failed = c.run_cells(cells, a.jobs)
    for name, reason in failed:
        print(f"failed      {name}: {reason}")
    if folders := [folder for cell in cells if (folder := c.find_run(cell.config))]:
        show(*read_runs(folders), a.csv)
    return 1 if impossible or failed else 0


def checked(a) -> dict[str, Any]:
    """The given training flags. Raises InputError for those that an ablation cannot use."""
    given = {k: v for k, v in given_flags(a).items() if k != "debug"}
    check_counts(a, "seeds", "jobs")
    for name in ("name", "resume", "allow_changes", "restart_schedule"):
        if name in given:
            raise InputError(f"--{name} is for a single run; ablate names and continues its cells automatically")
    return given


def parse_vary(text: str) -> tuple[str, list[Any]]:
    """'stripes=6,4 2' -> ('stripes', [(6,), (4, 2)]). Raises InputError."""
    name, _, values = text.partition("=")
    words = [word.strip() for word in values.split(",")]
    trained = [f for f in fields(Config) if "train" in f.metadata["scripts"]]
    known = {f.name: f for f in trained if f.metadata["section"] != "run" or f.name == "profile"}
    if name not in known or not all(words):
        near = "" if name in known else closest(name, list(known))
        raise InputError(
            f'--vary {text!r}: expected FIELD=A,B with a training flag{near}, for example --vary "stripes=6,4 2"'
        )
    default = known[name].default
    try:
        return name, [parse_value(word, default) for word in words]
    except (ValueError, KeyError) as e:
        example = value_text(default).lower()
        raise InputError(f"--vary {text!r}: {name} takes values like {example!r}") from e


def parse_value(word: str, default: Any) -> Any:
    """A value of the default's type. Raises ValueError, KeyError."""
    if isinstance(default, tuple):
        return tuple(type(default[0])(item) for item in word.split())
    if isinstance(default, bool):
        return BOOLEANS[word.lower()]
    return type(default)(word)
