"""python -m reid table: finished runs as one table, in Markdown and CSV."""

from pathlib import Path

from reid.errors import InputError
from reid.report import figures
from reid.report.table import COLUMNS, COVERED_COLUMNS, Scored, covered, markdown, read_runs, summary, write_table


def add_arguments(parser) -> None:
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="runs, evaluations, or folders of them (logs/market1501)"
    )
    parser.add_argument("--csv", metavar="FILE", help="also write a CSV with full precision")
    parser.add_argument("--figure", metavar="PNG", help="draw mAP by covered band for runs scored with --occlude")


def main(arguments) -> int:
    rows, left_out = read_runs(Path(p) for p in arguments.paths)
    if arguments.figure:
        lines = covered(rows)
        if not lines:
            raise InputError("--figure: no run was scored with a covered band; run evaluate.py --occlude 1 2 3 4 5 6")
        named = {", ".join(line[k] for k in COVERED_COLUMNS[:3]): line for line in lines}
        figures.covered(Path(arguments.figure), named)
    show(rows, left_out, arguments.csv)
    return 0


def show(rows: list[Scored], left_out: list[str], csv_file: str | None) -> None:
    """Prints the tables, and why runs are left out."""
    whole, bands = summary([row for row in rows if not row.record.covered]), covered(rows)
    if whole:
        print(markdown(whole, COLUMNS))
    if bands:
        print("\nmAP with one sixth of each query image covered, 1 at the top, 6 at the bottom:\n")
        print(markdown(bands, COVERED_COLUMNS))
    for reason in left_out:
        print(f"not in the table: {reason}")
    if csv_file:
        write_table(summary(rows), Path(csv_file))
