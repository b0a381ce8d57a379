"""python -m reid compare A B: whether two results on the same queries differ by more than chance."""

from pathlib import Path

from reid.evaluation.compare import comparison, read_queries


def add_arguments(parser) -> None:
    parser.add_argument("first", metavar="A", type=Path, help="an evaluation's folder, or its queries.csv")
    parser.add_argument("second", metavar="B", type=Path, help="another evaluation of the same queries")


def main(arguments) -> int:
    a, b = read_queries(arguments.first), read_queries(arguments.second)
    print(f"A {a.path}\nB {b.path}\n{comparison(a, b)}")
    return 0
