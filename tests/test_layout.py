"""One direction of imports, and no file is read by running code in it."""

import ast
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
]
ORDER += ["losses", "evaluation", "inference", "training", "report", "gallery", "bench", "commands"]
FILES = sorted((ROOT / "reid").rglob("*.py"))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return {n for n in names if n.split(".")[0] == "reid"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_backwards(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module in ("reid.__main__", "reid.__init__"):
        return  # they may open every package
    here = room(module)
    assert here in ORDER, f"{path} is in no package of {ORDER}"
    for name in imports(path):
        assert room(name) in ORDER and ORDER.index(room(name)) <= ORDER.index(here), f"{module} imports {name}"
        assert not (here == "evaluation" and room(name) == "models"), "evaluation knows no model"


def test_weights_are_read_without_running_code():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                assert safe, f"{path}:{node.lineno}"
