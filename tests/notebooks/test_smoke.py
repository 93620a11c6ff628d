"""Every notebook runs under the smoke profile, and its record is sane."""

import contextlib
import json
import shutil

import pytest

from asrlib import course, files, records, runner

ROOT = files.repository()
BOOKS = course.registry(ROOT)
RECORDED = [name for name, book in BOOKS.items() if "record.json" in book.writes]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run all notebooks in a copy of the course, so that this checkout keeps its own runs; return root and outcomes."""
    root = tmp_path_factory.mktemp("course")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    for name in ("data", "pyproject.toml", "requirements.lock"):
        (root / name).symlink_to(ROOT / name)
    with contextlib.chdir(root):
        outcomes = runner.run(root, profile="smoke", timeout=600)
    return root, {outcome.notebook: outcome for outcome in outcomes}


@pytest.fixture
def record(ran, request):
    return records.load(ran[0] / "build" / "runs" / "smoke" / request.param / "record.json")


@pytest.mark.parametrize("name", BOOKS)
def test_it_finishes(ran, name):
    assert ran[1][name].status == "finished", str(ran[1][name])


@pytest.mark.parametrize("record", RECORDED, indirect=True)
def test_its_record_names_profile_protocol_and_inputs(record):
    assert record["run"]["profile"] == "smoke"
    assert record["protocol"]["normalizer"]
    assert {item["kind"] for item in record["inputs"]} == {"checkpoint", "corpus"}
    assert all("revision" in item or "sha256" in item for item in record["inputs"] if item["kind"] == "checkpoint")


@pytest.mark.parametrize("record", RECORDED, indirect=True)
def test_its_numbers_are_sane(record):
    assert record["metrics"]
    for metric in record["metrics"]:
        assert metric["value"] >= 0 or {"change", "difference"} & set(metric["name"].split("_")), metric
        if metric["interval"]:
            low, high = metric["interval"]
            assert low <= metric["value"] <= high, metric
        if metric["name"] == "wer_percent":
            assert metric["words"] > 0, metric
            if not untrained(metric["labels"]):  # such a model may invent text without end
                assert metric["value"] <= 200, metric


def untrained(labels):
    """Tell a model that two steps have not taught to hear: with a cut context, or a student without most of its layers."""
    return labels.get("context") == "cut" or "student" in labels.values() or "experiment" in labels


@pytest.mark.parametrize("record", RECORDED, indirect=True)
def test_its_record_names_no_path_of_this_machine(record):
    assert course.absolute_paths(json.dumps(record)) == []
