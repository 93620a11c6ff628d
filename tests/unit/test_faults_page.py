"""The page of faults is the generated one, and has tests of every kind."""

from asrlib.io import environment
from tools import faults


def test_it_is_the_generated_one():
    assert (faults.ROOT / "docs" / "faults.md").read_text("utf-8") == faults.page(), "run python -m tools.faults"


def test_every_kind_has_tests():
    known = faults.tests()
    assert [kind for kind, (_, patterns) in faults.KINDS.items() if not faults.rows(patterns, known)] == []


def test_what_would_run_code_from_the_hub_is_not_locked():
    assert "kernels" not in environment.pins((faults.ROOT / "requirements.lock").read_text("utf-8"))
