import csv
import io
import json
import math
import statistics
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from asrlib import AsrlibError
from asrlib.course import registry
from asrlib.io import files
from workflow import plan, table

ROOT = files.repository()
TABLE = {
    "profile": "smoke",
    "output": "runs",
    "notebooks": {"01_one": {"N_CLIPS": 3}, "02_two": None},
    "matrix": {"LANGUAGE": ["ro", "no"], "SEED": [0, 1]},
    "threads": 1,
    "resources": {"mem_mb": 500, "runtime": 5},
}


@pytest.fixture
def two(course_folder):
    """A course of two notebooks, the second of which needs the first, with the schema of a sweep's table."""
    course_folder.add("01_one")
    course_folder.add("02_two", needs=("01_one",))
    (course_folder.root / "workflow").mkdir()
    schema = (ROOT / "workflow" / "sweep.schema.json").read_bytes()
    (course_folder.root / "workflow" / "sweep.schema.json").write_bytes(schema)
    return course_folder.root


# ------------------------------------------------------------------------------------------------------------------- plan
def test_every_notebook_meets_every_combination_and_needs_its_own(two):
    jobs = plan.plan(two, TABLE)
    cells = [f"LANGUAGE={code}/SEED={seed}/smoke" for code in ("ro", "no") for seed in (0, 1)]
    assert list(jobs) == [f"{cell}/{name}" for name in ("01_one", "02_two") for cell in cells]
    assert jobs[f"{cells[3]}/02_two"].needs == (f"{cells[3]}/01_one",)
    assert jobs[f"{cells[3]}/01_one"].options == ("-p", "LANGUAGE=no", "-p", "SEED=1", "-p", "N_CLIPS=3")
    assert jobs[f"{cells[3]}/02_two"].options == ("-p", "LANGUAGE=no", "-p", "SEED=1")


def test_a_key_changes_with_the_code_of_the_notebook_and_of_what_it_needs(two):
    def keys():
        return {folder.rsplit("/", 1)[1]: job.key for folder, job in plan.plan(two, TABLE).items()}

    before = keys()
    path = two / "notebooks" / "01_one.ipynb"
    path.write_text(path.read_text().replace("## Part 1", "## Part one"))
    assert keys() == before
    path.write_text(path.read_text().replace("8.4", "8.5"))
    assert {name for name, key in keys().items() if key != before[name]} == {"01_one", "02_two"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"threads": 0}, "sweep's table breaks workflow/sweep.schema.json at threads: 0 is less than the minimum"),
        ({"seeds": [1]}, "at top level: .*'seeds' was unexpected"),
        ({"matrix": {"SEED": []}}, "at matrix/SEED"),
        ({"matrix": {"SEED": [None]}}, "at matrix/SEED/0: None is not of type"),
        ({"matrix": {"LANGUAGE": [False]}}, "LANGUAGE is False, as YAML reads .* put it in quotes"),
        ({"matrix": {"SEED": ["one"]}}, "SEED must be of type int"),
        ({"matrix": {"SEEDS": [1]}}, "has no parameter SEEDS"),
        ({"matrix": {"N_CLIPS": [1]}}, "gives 01_one N_CLIPS twice"),
        ({"matrix": {"LANGUAGE": ["a/b", "a-b"]}}, "values of LANGUAGE that share the folder LANGUAGE=a-b"),
        ({"notebooks": {"02_two": {}}}, "02_two, which needs 01_one: add that"),
        ({"notebooks": {"03": {}}}, "no notebook '03'"),
        ({"profile": "huge"}, "no profile 'huge'"),
    ],
)
def test_a_wrong_table_is_refused_in_one_sentence(two, changes, sentence):
    with pytest.raises(AsrlibError, match=sentence):
        plan.plan(two, TABLE | changes)


@given(st.dictionaries(st.sampled_from(["A", "B_1"]), st.text() | st.integers() | st.lists(st.text()), min_size=1))
def test_a_folder_stays_inside_the_sweep_whatever_the_values(values):
    folder = plan._folder(values)
    assert len(Path(folder).parts) == len(values)
    assert not {".", ".."} & set(Path(folder).parts)
    assert folder.isascii()


def test_the_table_of_this_course_is_right():
    table = yaml.safe_load((ROOT / "workflow" / "sweep.yaml").read_text())
    assert len(plan.plan(ROOT, table)) == math.prod(map(len, table["matrix"].values())) * len(table["notebooks"])


def test_every_parameter_of_the_course_can_be_given_what_its_profile_gives_it():
    profiles = files.read_toml(ROOT / "notebooks" / "profiles.toml")
    for book in registry.read(ROOT).values():
        values = profiles["smoke"].get(book.name, {})
        assert registry.check_parameters(book, {name: plan._text(value) for name, value in values.items()}) == values


# ------------------------------------------------------------------------------------------------------------------ table
def record(seed=0, value=8.4, notebook="02_two", code="a", profile="smoke", labels=None, **parameters):
    metric = {"name": "wer_percent", "value": value, "unit": "%", "labels": labels or {"corpus": "own"}}
    run = {"notebook": notebook, "profile": profile, "parameters": {**parameters, "SEED": seed}, "seed": seed}
    return {"metrics": [metric], "run": run | {"source_sha256": code * 64}}


def rows(*found):
    """Return all rows of the tables of records, as dictionaries."""
    return [row for part in table.collect(found).values() for row in part.to_dict("records")]


@settings(max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_mean_deviation_and_interval_are_those_of_the_t_distribution(values):
    (row,) = rows(*(record(seed, value) for seed, value in enumerate(values)))
    assert row["mean"] == pytest.approx(statistics.fmean(values), abs=1e-6)
    if len(values) == 1:
        assert pd.isna(row["sd"]) and pd.isna(row["low"])
    elif (error := stats.sem(values)) > 1e-9:
        expected = stats.t.interval(0.95, len(values) - 1, loc=statistics.fmean(values), scale=error)
        assert (row["low"], row["high"]) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=30)
@given(st.permutations([record(s, 10.0 * len(code) + s, LANGUAGE=code) for code in ("ro", "bul") for s in range(3)]))
def test_a_row_is_a_choice_of_parameters_in_whatever_order_the_runs_come(found):
    shown = [(row["LANGUAGE"], [row[f"seed.{seed}"] for seed in range(3)]) for row in rows(*found)]
    assert shown == [("bul", [30.0, 31.0, 32.0]), ("ro", [20.0, 21.0, 22.0])]


def test_a_row_shows_model_and_language_and_what_differs_and_labels_and_profiles_tell_rows_apart():
    found = [record(MODEL_ID="m", STEPS=steps, CLIPS=5) for steps in (1, 2)] + [record(notebook="03_other", CLIPS=6)]
    first, second, other = rows(*found)
    assert [(row["MODEL_ID"], row["STEPS"], "CLIPS" in row) for row in (first, second)] == [
        ("m", "1", False), ("m", "2", False),
    ]  # fmt: skip
    assert not {"MODEL_ID", "CLIPS"} & set(other)
    stages = [record(0, 1.0, labels={"stage": "before"}), record(1, 2.0, labels={"stage": "after"})]
    tables = table.collect([*stages, record(0, 3.0, profile="paper")])
    assert list(tables) == [("02_two", "paper"), ("02_two", "smoke")]
    assert list(tables["02_two", "smoke"]["label.stage"]) == ["after", "before"]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ([record(0), record(0)], "same parameters and seed 0"),
        ([record(0, code="a"), record(1, code="b")], "different code of the notebook"),
    ],
)
def test_what_is_not_one_experiment_is_not_averaged(found, sentence):
    with pytest.raises(AsrlibError, match=sentence):
        table.collect(found)


def test_both_files_have_a_line_for_each_row(tmp_path):
    ro = [record(seed, value, LANGUAGE="ro") for seed, value in enumerate([10.0, 12.0])]
    tables = table.collect([*ro, record(7, 123456.7, LANGUAGE="bg", labels={"split": "test|a"})])
    table.write(tables, tmp_path)
    bg, ro = csv.DictReader(io.StringIO((tmp_path / "sweep.csv").read_text()))
    shared = {"notebook": "02_two", "profile": "smoke", "metric": "wer_percent", "unit": "%"}
    assert bg == shared | {
        "LANGUAGE": "bg", "label.split": "test|a", "label.corpus": "", "seeds": "1", "mean": "123456.7", "sd": "", "low": "",
        "high": "", "seed.0": "", "seed.1": "", "seed.7": "123456.7",
    }  # fmt: skip
    assert (ro["seed.0"], ro["seed.1"], ro["mean"], ro["label.corpus"]) == ("10.0", "12.0", "11.0", "own")
    text = (tmp_path / "sweep.md").read_text()
    assert "## 02_two, profile smoke" in text
    assert "| 2 | 11 | 1.414 | -1.706 | 23.71 | 10 | 12 |  |" in text
    assert r"test\|a | 1 | 123,457 |  |  |  |  |  | 123,457 |" in text


def test_the_command_reads_runs_and_folders(tmp_path, capsys):
    published = json.loads((ROOT / "results" / "00_start_here" / "record.json").read_text())
    for seed in (1, 2):
        published["run"] |= {"seed": seed, "parameters": published["run"]["parameters"] | {"SEED": seed}}
        files.write_atomic(tmp_path / f"SEED={seed}" / "reference" / "x" / "record.json", json.dumps(published))
    table.main([str(tmp_path), str(tmp_path / "SEED=1")])
    assert capsys.readouterr().out.count("\n| ") == len(published["metrics"]) + 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="There is no record"):
        table.main([str(tmp_path / "empty")])
