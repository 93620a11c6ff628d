"""The library's shape: one folder, one floor; imports only down; nothing too long to be read at a sitting."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "asrlib"
# From the ground up. A module that lies in no folder is on the floor of "".
FLOORS = ("io", "", "corpora", "models", "decoding", "engines", "training", "tasks", "course", "cli")
LINES = 400
FUNCTION = 50
MODULES = sorted(PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def floor(module: str) -> int:
    parts = module.split(".")
    return FLOORS.index(parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else "")


NAMES = {name(path) for path in MODULES}


def imported(path: Path) -> set[str]:
    """Return the modules of asrlib that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {member if member in NAMES else node.module for member in members}
    return {module for module in found if module in NAMES} - {"asrlib", name(path)}


def test_every_folder_has_its_floor():
    folders = {path.relative_to(PACKAGE).parts[0] for path in MODULES if path.parent != PACKAGE}
    assert folders == set(FLOORS) - {""}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_only_go_down(path):
    if path == PACKAGE / "__init__.py":
        assert imported(path) == {"asrlib.io.noise"}
        return
    above = [module for module in imported(path) if floor(module) > floor(name(path))]
    assert not above


def test_no_imports_in_a_circle():
    graph = {name(path): imported(path) for path in MODULES if path != PACKAGE / "__init__.py"}
    while ends := {module for module, below in graph.items() if not below & graph.keys()}:
        for module in ends:
            del graph[module]
    assert not graph


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_can_be_read_at_a_sitting(path):
    source = path.read_text("utf-8")
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= FUNCTION
    }
    assert not long
    lines = source.count("\n")
    assert lines <= LINES
