"""Every notebook runs under the smoke profile, and its record is sane.

Several processes may share these tests (pytest-xdist): they share the runs too, in one folder, each notebook run once.
"""

import contextlib
import functools
import json
import os
import shutil

import pytest

from asrlib.course import records, registry, runner
from asrlib.io import files
from tools import publish

ROOT = files.repository()
BOOKS = registry.read(ROOT)
# What the decoder takes is a whole less the encoder's part: one round of each, as here, can come out below zero.
TIME_LESS_TIME = {"decoder_share_percent", "half_ms"}
RECORDED = [name for name, book in BOOKS.items() if "record.json" in book.writes]


def copied(target):
    """Copy the course, so that this checkout keeps its own runs."""
    shutil.copytree(ROOT / "notebooks", target / "notebooks")
    for name in ("data", "results", "pyproject.toml", "requirements.lock"):  # notebook 14 reads published records
        (target / name).symlink_to(ROOT / name)


@pytest.fixture(scope="session")
def ran(tmp_path_factory):
    """Return a function from a notebook's name to its folder and outcome: it runs, after what it needs, unless it has already."""
    base = tmp_path_factory.getbasetemp()
    root = files.prepared((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "course", copied)

    @functools.cache
    def run(name):
        for need in BOOKS[name].needs:
            if registry.result(registry.run_folder(root, "smoke", need)) is None:
                run(need)
        with contextlib.chdir(root):
            (outcome,) = runner.run(root, [name], profile="smoke")
        return registry.run_folder(root, "smoke", name), outcome

    return run


@pytest.fixture
def record(ran, request):
    return records.load(ran(request.param)[0] / "record.json")


@pytest.mark.parametrize("name", BOOKS)
def test_it_finishes(ran, name):
    outcome = ran(name)[1]
    assert outcome.good, str(outcome)


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
        signed = {"change", "difference", "gap"} & set(metric["name"].split("_")) or metric["name"] in TIME_LESS_TIME
        assert metric["value"] >= 0 or signed, metric
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
    assert publish.absolute_paths(json.dumps(record)) == []
