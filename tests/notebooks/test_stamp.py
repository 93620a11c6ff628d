"""The outputs of a committed notebook come from its committed code: otherwise its stamp differs."""

import json

import pytest

from asrlib.course import registry
from asrlib.io import files
from tools import publish

ROOT = files.repository()
BOOKS = registry.read(ROOT)
STALE = publish.stale(ROOT)


def test_the_list_of_stale_notebooks_names_notebooks():
    assert not STALE - set(BOOKS)


@pytest.mark.parametrize("name", [name for name in BOOKS if name not in STALE])
def test_the_stamp_is_that_of_the_present_code_profile_and_versions(name):
    found = json.loads(BOOKS[name].path.read_text())["metadata"].get("asrlib", {})
    wanted = {"profile": "reference", "stamp": registry.stamp(ROOT, BOOKS[name], "reference")}
    assert found == wanted, f"{name} changed after its outputs were published: asrlib run {name[:2]} --publish"


@pytest.mark.parametrize("name", BOOKS)
def test_the_published_results_are_there(name):
    assert [item for item in BOOKS[name].writes if not (ROOT / "results" / name / item).is_file()] == []
