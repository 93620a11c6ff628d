"""The page of faults names tests that exist, and every file of fault tests."""

import re
from pathlib import Path

from asrlib.io import environment

ROOT = Path(__file__).parents[2]
FILES = {path.name: path for kind in ("unit", "faults") for path in (ROOT / "tests" / kind).glob("test_*.py")}
NAMED = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", (ROOT / "docs" / "faults.md").read_text("utf-8"))


def test_its_tests_exist():
    assert [f"{file}::{test}" for file, test in NAMED if f"\ndef {test}" not in FILES[file].read_text("utf-8")] == []


def test_every_file_of_fault_tests_is_on_the_page():
    assert {path.name for path in (ROOT / "tests" / "faults").glob("test_*.py")} <= {file for file, _ in NAMED}


def test_what_would_run_code_from_the_hub_is_not_locked():
    assert "kernels" not in environment.pins((ROOT / "requirements.lock").read_text("utf-8"))
