"""Rules that hold in every file: imports in one direction, explicit encodings, nothing that Windows lacks."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    "errors",
    "variants",
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
    "serve",
    "commands",
]
REID = sorted((ROOT / "reid").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
TEXT_MODES = {"r", "w", "a", "x", "r+", "w+", "a+", "rt", "wt", "at", "xt"}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package(module: str) -> str:
    """reid.data.records -> data"""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def may_print(path: Path) -> bool:
    """Commands and benchmarks are the command line; no other package prints or parses flags."""
    return path.parent.name in ("commands", "bench")


def given(call: ast.Call, name: str, place: int | None = None) -> ast.expr | None:
    """An argument by its name or position; None when it is absent."""
    named = {k.arg: k.value for k in call.keywords}
    if place is not None and len(call.args) > place:
        return call.args[place]
    return named.get(name)


# Rules: each gives (line, what is wrong) of one file.
Found = Iterator[tuple[int, str]]


def imported(nodes: Iterable[ast.AST]) -> Found:
    """(line, module) of every import among the nodes."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from outside_functions(node)


def posix_imports(nodes: Iterable[ast.AST]) -> Found:
    return ((line, name) for line, name in imported(nodes) if name.split(".")[0] in POSIX_ONLY)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(name of the called function, node) of every call."""
    return ((ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call))


def prints(tree: ast.AST) -> Found:
    for function, call in calls(tree):
        if function in ("print", "sys.stdout.write", "sys.stderr.write"):
            yield call.lineno, function


def flag_parsers(tree: ast.AST) -> Found:
    return ((line, name) for line, name in imported(ast.walk(tree)) if name == "argparse")


def texts_without_encoding(tree: ast.AST) -> Found:
    """read_text, write_text and open in a text mode, without encoding=.

    Objects that are not paths have a method open too, so there a literal text mode is what tells them apart.
    """
    for function, call in calls(tree):
        if any(k.arg == "encoding" for k in call.keywords):
            continue
        if function in ("open", "io.open", "os.fdopen"):
            mode = given(call, "mode", 1)
            binary = isinstance(mode, ast.Constant) and "b" in mode.value
            if not binary:
                yield call.lineno, function
        elif function.endswith(".open"):
            mode = given(call, "mode", 0)
            if isinstance(mode, ast.Constant) and mode.value in TEXT_MODES:
                yield call.lineno, function
        elif function.rpartition(".")[2] in ("read_text", "write_text"):
            yield call.lineno, function


def unsafe_loads(tree: ast.AST) -> Found:
    for function, call in calls(tree):
        safe = given(call, "weights_only")
        if function in ("pickle.load", "pickle.loads") or (
            function == "torch.load" and not (isinstance(safe, ast.Constant) and safe.value is True)
        ):
            yield call.lineno, function


def found_in(rule, paths: Iterable[Path]) -> list[str]:
    """ "file:line what" for everything that a rule finds."""
    return [f"{name_of(p)}:{line} {what}" for p in paths for line, what in rule(parsed(p))]


@pytest.mark.parametrize("rule, source", [
    (texts_without_encoding, "open(p)"),
    (texts_without_encoding, "open(p, 'w', newline='')"),
    (texts_without_encoding, "open(p, mode)"),
    (texts_without_encoding, "p.open('a')"),
    (texts_without_encoding, "p.read_text()"),
    (texts_without_encoding, "(folder / 'x').write_text(y)"),
    (unsafe_loads, "torch.load(p)"),
    (unsafe_loads, "torch.load(p, weights_only=False)"),
    (unsafe_loads, "pickle.load(f)"),
    (prints, "def f():\n    print(1)"),
    (flag_parsers, "def f():\n    import argparse"),
    (lambda tree: posix_imports(ast.walk(tree)), "def f():\n    import fcntl"),
    (lambda tree: posix_imports(outside_functions(tree)), "try:\n    from resource import getrlimit\nexcept E:\n    x"),
])  # fmt: skip
def test_rules_find_what_they_forbid(rule, source):
    assert len(list(rule(ast.parse(source)))) == 1


@pytest.mark.parametrize("rule, source", [
    (texts_without_encoding, "open(p, 'rb'), open(p, 'w', encoding='utf-8'), p.open('wb'), page.open(path)"),
    (texts_without_encoding, "p.read_text(encoding='utf-8'), p.write_bytes(b)"),
    (unsafe_loads, "torch.load(p, weights_only=True)"),
    (prints, "bar.write(line)"),
    (lambda tree: posix_imports(outside_functions(tree)), "def f():\n    import resource"),
])  # fmt: skip
def test_rules_leave_the_rest_alone(rule, source):
    assert list(rule(ast.parse(source))) == []


@pytest.mark.parametrize("path", REID, ids=name_of)
def test_imports_point_backwards(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module in ("reid.__main__", "reid.__init__"):
        return  # they may import every package
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
    assert found_in(lambda tree: posix_imports(ast.walk(tree)), [*REID, *SCRIPTS]) == []
    assert found_in(lambda tree: posix_imports(outside_functions(tree)), TESTS) == []


def test_only_commands_and_benchmarks_print_and_parse_flags():
    others = [path for path in REID if not may_print(path)]
    assert found_in(prints, others) == []
    assert found_in(flag_parsers, others) == []


def test_weights_are_read_without_running_code():
    assert found_in(unsafe_loads, REID) == []


def test_texts_have_an_encoding():
    """Windows would read and write them in a code page of the machine's language."""
    tests = [path for path in TESTS if path.name != "test_golden.py"]  # is never changed; its names are ASCII
    assert found_in(texts_without_encoding, [*REID, *SCRIPTS, *tests]) == []


def test_the_map_names_every_test_file():
    text = (ROOT / "tests/README.md").read_text(encoding="utf-8")
    missing = [path.name for path in TESTS if path.name.startswith("test_") and f"`{path.name}`" not in text]
    assert missing == []
