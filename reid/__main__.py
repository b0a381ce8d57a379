"""python -m reid <command>: the subcommands, each in its own room."""

import importlib
import sys

from reid.errors import reported
from reid.flags import Parser

# command -> (module with add_arguments(parser) and main(arguments) -> exit code, what it does)
COMMANDS = {
    "ablate": ("reid.report.ablate", "train and score one factor at a time, or a grid, and print the table"),
    "bench": ("reid.bench.command", "speed and memory beside the plain forms"),
    "check": ("reid.data.check", "a dataset looked over before training: lists, images, duplicates"),
    "compare": ("reid.evaluation.compare", "two results on the same queries: is the difference more than chance?"),
    "export": ("reid.deploy.export", "a model as ONNX or safetensors, run and compared before it is kept"),
    "extract": ("reid.deploy.extract", "descriptors of any images: a folder, a list, a pattern"),
    "gallery": ("reid.deploy.search", "a file of descriptors that can be searched: create, add, remove, search, info"),
    "import": ("reid.deploy.import_weights", "anybody's weights, read without running their code"),
    "prepare": ("reid.data.prepare.command", "make a dataset ready: from an archive, a folder, or drawn (demo)"),
    "report": ("reid.report.command", "a result as one page: rank lists, which part matched, curves"),
    "table": ("reid.report.table", "finished runs as Markdown and CSV, means over seeds"),
}


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a check or comparison failed, 2 bad usage or bad input."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="python -m reid", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, (module, what) in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("--debug", action="store_true", default=False, help="show tracebacks of input errors")
        if name in argv[:1]:  # import only the room that is asked for
            importlib.import_module(module).add_arguments(command)
    arguments = parser.parse_args(argv)
    run = importlib.import_module(COMMANDS[arguments.command][0]).main
    return reported(lambda: run(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
