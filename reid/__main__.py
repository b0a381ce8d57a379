"""python -m reid <command>: every command of the project."""

import importlib
import sys

from reid.commands import reported, show_log
from reid.commands.flags import Parser
from reid.config import closest

# command -> (its module with add_arguments(parser) and main(arguments) -> exit code, help text)
COMMANDS = {
    "train": ("reid.commands.train", "train a model"),
    "evaluate": ("reid.commands.evaluate", "score weights or features on a test set"),
    "ablate": ("reid.commands.ablate", "train and score variants, and print their table"),
    "bench": ("reid.commands.bench", "measure speed and memory against plain implementations"),
    "check": ("reid.commands.check", "report problems of a dataset: lists, images, duplicates"),
    "compare": ("reid.commands.compare", "test whether two results differ by more than chance"),
    "export": ("reid.commands.export", "write a model as ONNX or safetensors and verify it"),
    "extract": ("reid.commands.extract", "compute descriptors of any images"),
    "gallery": ("reid.commands.gallery", "create, change and search a gallery of descriptors"),
    "import": ("reid.commands.import_weights", "convert weights of other programs safely"),
    "prepare": ("reid.commands.prepare", "prepare a dataset from an archive or folder, or draw the demo"),
    "report": ("reid.commands.report", "write an HTML page with rank lists, matched parts and curves"),
    "serve": ("reid.commands.serve", "search a gallery over HTTP, with a page"),
    "table": ("reid.commands.table", "print finished runs as a table, with means over seeds"),
}


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 success, 1 a check or comparison failed, 2 bad usage or bad input."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="python -m reid", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    if argv and argv[0] not in COMMANDS and not argv[0].startswith("-"):
        parser.error(f"unknown command {argv[0]!r}{closest(argv[0], [*COMMANDS])}; known are {', '.join(COMMANDS)}")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, conflict_handler="resolve")
        if name in argv[:1]:  # the import of a command's module takes seconds
            importlib.import_module(module).add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show tracebacks of input errors")
    arguments = parser.parse_args(argv)
    run = importlib.import_module(COMMANDS[arguments.command][0]).main
    show_log()
    return reported(lambda: run(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
