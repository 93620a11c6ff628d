"""The page of faults names tests that exist, and versions that are locked."""

import ast
import re
from pathlib import Path

import pytest

from asrlib.io import environment

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "faults.md").read_text("utf-8").splitlines()
    if line.startswith("|") and not line.startswith(("|---", "| fault |", "| where |", "| package |"))
]
VERSIONS = [row for row in ROWS if re.fullmatch(r"[\d.]+(, [\d.]+)*", row[1])]
TESTS = [row for row in ROWS if row not in VERSIONS]
FILES = {path.name: path for kind in ("unit", "faults") for path in (ROOT / "tests" / kind).glob("test_*.py")}


def named(row):
    return re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", row[-1])


@pytest.mark.parametrize("row", TESTS, ids=lambda row: row[0][:60])
def test_its_tests_exist(row):
    assert named(row)
    assert row[-1] == " ".join(f"`{file}{test and '::' + test}`" for file, test in named(row)), "something is no test"
    for file, test in named(row):
        functions = [
            node.name for node in ast.parse(FILES[file].read_text("utf-8")).body if isinstance(node, ast.FunctionDef)
        ]
        assert not test or test in functions


def test_every_file_of_fault_tests_is_on_the_page():
    on_page = {file for row in TESTS for file, _ in named(row)}
    assert {path.name for path in (ROOT / "tests" / "faults").glob("test_*.py")} <= on_page


@pytest.mark.parametrize("row", VERSIONS, ids=lambda row: row[0])
def test_its_versions_are_locked(row):
    names, own, _ = row[0].partition(" of optimum")
    lock = "environments/optimum.lock" if own else "requirements.lock"
    pins = environment.pins((ROOT / lock).read_text("utf-8"))
    assert {name: pins[name] for name in names.split(", ")} == dict(
        zip(names.split(", "), row[1].split(", "), strict=True)
    )


def test_what_would_run_code_from_the_hub_is_not_locked():
    assert "kernels" not in environment.pins((ROOT / "requirements.lock").read_text("utf-8"))
