"""python -m reid <command>: every command of the project."""

import importlib
import sys

from reid.commands import reported, show_log
from reid.commands.flags import Parser

# command -> (module with add_arguments(parser) and main(arguments) -> exit code, what it does)
COMMANDS = {
    "train": ("reid.commands.train", "train a model"),
    "evaluate": ("reid.commands.evaluate", "score weights or features on a test set"),
    "ablate": ("reid.commands.ablate", "train and score one factor at a time, or a grid, and print the table"),
    "bench": ("reid.commands.bench", "speed and memory beside the plain forms"),
    "check": ("reid.commands.check", "find what is wrong with a dataset: lists, images, duplicates"),
    "compare": ("reid.commands.compare", "two results on the same queries: is the difference more than chance?"),
    "export": ("reid.commands.export", "a model as ONNX or safetensors, run and compared before it is kept"),
    "extract": ("reid.commands.extract", "descriptors of any images: a folder, a list, a pattern"),
    "gallery": ("reid.commands.gallery", "descriptors that can be searched: create, add, remove, search, info"),
    "import": ("reid.commands.import_weights", "anybody's weights, read without running their code"),
    "prepare": ("reid.commands.prepare", "make a dataset ready: from an archive, a folder, or drawn (demo)"),
    "report": ("reid.commands.report", "a result as one page: rank lists, which part matched, curves"),
    "table": ("reid.commands.table", "finished runs as Markdown and CSV, means over seeds"),
}


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a check or comparison failed, 2 bad usage or bad input."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="python -m reid", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, (module, what) in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what, conflict_handler="resolve")
        if name in argv[:1]:  # import only the command that is asked for
            importlib.import_module(module).add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show tracebacks of input errors")
    arguments = parser.parse_args(argv)
    run = importlib.import_module(COMMANDS[arguments.command][0]).main
    show_log()
    return reported(lambda: run(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
