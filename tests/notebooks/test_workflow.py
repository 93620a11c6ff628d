"""Snakemake runs a sweep of a made-up course; the plan of the real one is tried in test_sweep."""

import csv
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from asrlib.course import records, registry
from asrlib.io import files

pytest.importorskip("snakemake", reason="snakemake is not installed")

pytestmark = pytest.mark.slow
ROOT = files.repository()
MEASURE = """
import os
if LANGUAGE == "xx":
    raise ValueError("there is no such language")
run.add("loss", 1.5 * SEED + len(LANGUAGE))
run.protocol(threads=os.environ["OMP_NUM_THREADS"], clips=N_CLIPS)
"""


@pytest.fixture(scope="module")
def checkout(make_course, tmp_path_factory):
    """A course with the library and the workflow of this one, and two notebooks of a few lines."""
    made = make_course(tmp_path_factory.mktemp("sweep") / "a course")
    for name in ("asrlib", "workflow"):
        shutil.copytree(ROOT / name, made.root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "data" / "record.schema.json", made.root / "data")
    made.add("01_one", MEASURE)
    made.add("02_two", needs=("01_one",))
    return made


@pytest.fixture
def sweep(checkout, tmp_path):
    """Return a function that starts snakemake in an empty folder, on the made-up course."""
    return lambda *options, **changes: snakemake(checkout.root, tmp_path, *options, **changes)


def snakemake(root, folder, *options, **changes):
    table = {
        "profile": "smoke",
        "output": "runs",
        "notebooks": {"01_one": {}},
        "matrix": {"LANGUAGE": ["ro"], "SEED": [0, 3]},
        "threads": 1,
        "resources": {"mem_mb": 500, "runtime": 5},
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(table | changes))
    command = [sys.executable, "-m", "snakemake", "-s", str(root / "workflow" / "Snakefile"), "--cores", "2"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ASRLIB_P")}
    return subprocess.run(
        [*command, "--directory", str(folder), "--configfile", "my.yaml", *options],
        cwd=folder, env=environment | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "7"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def jobs(done):
    """Return how many runs snakemake planned."""
    return int(found[1]) if (found := re.search(r"^execute +(\d+)$", done.stdout + done.stderr, re.MULTILINE)) else 0


def nothing(done):
    return "Nothing to be done" in done.stdout + done.stderr


def table(folder):
    with open(folder / "runs" / "sweep.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_sweep_is_run_and_collected_and_only_what_is_missing_or_changed_is_run_again(sweep, checkout, tmp_path):
    done = sweep()
    assert done.returncode == 0, done.stderr
    found = [records.load(path) for path in sorted((tmp_path / "runs").rglob("record.json"))]
    assert sorted((item["run"]["parameters"]["LANGUAGE"], item["run"]["seed"]) for item in found) == [
        ("ro", 0), ("ro", 3),
    ]  # fmt: skip
    assert [item["protocol"] for item in found] == [{"threads": "1", "clips": 2}] * 2
    rows = {(row["LANGUAGE"], row["metric"]): row for row in table(tmp_path)}
    assert [rows["ro", "loss"][name] for name in ("seed.0", "seed.3", "mean", "seeds")] == ["2.0", "6.5", "4.25", "2"]
    assert "| ro | loss |" in (tmp_path / "runs" / "sweep.md").read_text()

    (tmp_path / "runs" / "LANGUAGE=ro" / "SEED=3" / "smoke" / "01_one" / "record.json").unlink()
    again = sweep()
    assert (again.returncode, jobs(again)) == (0, 1), again.stderr
    assert jobs(sweep("-n", matrix={"LANGUAGE": ["ro", "bul"], "SEED": [0, 3]})) == 2
    assert jobs(sweep("-n", notebooks={"01_one": {"N_CLIPS": 3}})) == 2
    path = checkout.root / "notebooks" / "01_one.ipynb"
    before = path.read_text()
    path.write_text(before.replace("## Part 1", "## Part one"))
    assert nothing(sweep("-n"))
    path.write_text(before.replace("1.5 * SEED", "2.5 * SEED"))
    assert jobs(sweep("-n")) == 2
    path.write_text(before)


def test_a_run_that_fails_stops_those_that_need_it_alone_and_leaves_its_notebook(sweep, tmp_path):
    both = {"notebooks": {"01_one": {}, "02_two": {}}, "matrix": {"LANGUAGE": ["xx", "ro"], "SEED": [1]}}
    done = sweep(**both)
    assert done.returncode == 1
    assert "ValueError: there is no such language" in done.stdout
    good, bad = (tmp_path / "runs" / f"LANGUAGE={code}" / "SEED=1" / "smoke" for code in ("ro", "xx"))
    assert [registry.result(good / name).status for name in ("01_one", "02_two")] == ["finished", "finished"]
    assert registry.result(bad / "01_one").status == "failed"
    assert "no such language" in (bad / "01_one" / "notebook.ipynb").read_text()
    assert not (bad / "02_two" / "result.json").exists()
    assert jobs(sweep("-n", **both)) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"notebooks": {"7": {}}}, "There is no notebook '7'"),
        ({"matrix": {"SEED": [0], "LANGAUGE": ["ro"]}}, "01_one has no parameter LANGAUGE"),
    ],
)
def test_a_wrong_table_is_refused_before_anything_starts(sweep, tmp_path, changes, sentence):
    done = sweep(**changes)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert not (tmp_path / "runs").exists()
