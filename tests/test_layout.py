"""Rules that hold in every file: imports in one direction, explicit encodings, nothing that Windows lacks."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    "errors",
    "config",
    "profiles",
    "signals",
    "processes",
    "device",
    "files",
    "versions",
    "runs",
    "data",
    "models",
    "losses",
    "evaluation",
    "inference",
    "training",
    "report",
    "gallery",
    "bench",
    "commands",
]
REID = sorted((ROOT / "reid").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
TEXT_METHODS = {"read_text", "write_text"}
TEXT_MODES = {"r", "w", "a", "x", "r+", "w+", "a+", "rt", "wt", "at", "xt"}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package(module: str) -> str:
    """reid.data.records -> data"""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imported(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """(line, module) of every import among the nodes."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: all but the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_import(node)


def calls(path: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """("file:line", name of the called function, node) of every call."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            yield f"{name_of(path)}:{node.lineno}", ast.unparse(node.func), node


def given(call: ast.Call, name: str, place: int) -> ast.expr | None:
    """An argument by its name or position; None when it is absent."""
    named = {k.arg: k.value for k in call.keywords}
    return named.get(name, call.args[place] if len(call.args) > place else None)


def opens_text(function: str, call: ast.Call) -> bool:
    """open(...) or Path.open(...) in a text mode. A method named open counts when its first argument is such a mode,
    as objects that are not paths have one too."""
    if function in ("open", "io.open", "os.fdopen"):
        mode = given(call, "mode", 1)
        return mode is None or not (isinstance(mode, ast.Constant) and "b" in mode.value)
    mode = given(call, "mode", 0)
    return function.endswith(".open") and isinstance(mode, ast.Constant) and mode.value in TEXT_MODES


@pytest.mark.parametrize("path", REID, ids=name_of)
def test_imports_point_backwards(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module in ("reid.__main__", "reid.__init__"):
        return  # they may open every package
    here = package(module)
    assert here in ORDER, f"{path} is in none of {ORDER}"
    for line, name in imported(ast.walk(parsed(path))):
        assert not name.startswith("."), f"{module}:{line}: relative import"
        if name.split(".")[0] != "reid":
            continue
        there = package(name)
        assert there in ORDER, f"{module}:{line} imports {name}"
        assert ORDER.index(there) <= ORDER.index(here), f"{module}:{line} imports {name}"
        assert (here, there) != ("evaluation", "models"), f"{module}:{line}: evaluation must not know models"


def test_no_import_that_windows_lacks():
    """reid/ has none at all. A test may import one inside a function, where it can skip."""
    places = []
    for path in [*REID, *SCRIPTS, *TESTS]:
        nodes = at_import(parsed(path)) if path in TESTS else ast.walk(parsed(path))
        places += [f"{name_of(path)}:{n} {m}" for n, m in imported(nodes) if m.split(".")[0] in POSIX_ONLY]
    assert places == []


def test_only_commands_and_benchmarks_print():
    printing = [
        place
        for path in REID
        if package(".".join(path.relative_to(ROOT).parts)) not in ("commands", "bench")
        for place, function, _ in calls(path)
        if function in ("print", "sys.stdout.write", "sys.stderr.write")
    ]
    assert printing == []


def test_only_commands_and_benchmarks_parse_flags():
    parsing = [
        f"{name_of(path)}:{line}"
        for path in REID
        if package(".".join(path.relative_to(ROOT).parts)) not in ("commands", "bench")
        for line, name in imported(ast.walk(parsed(path)))
        if name == "argparse"
    ]
    assert parsing == []


def test_weights_are_read_without_running_code():
    for path in REID:
        for place, function, call in calls(path):
            assert function not in ("pickle.load", "pickle.loads"), place
            if function == "torch.load":
                safe = given(call, "weights_only", 99)
                assert isinstance(safe, ast.Constant) and safe.value is True, f"{place} has no weights_only=True"
