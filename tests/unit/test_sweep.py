import csv
import io
import json
import math
import statistics
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from asrlib import AsrlibError, cli
from asrlib.course import registry, sweep
from asrlib.io import files

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")

ROOT = files.repository()
TABLE = {
    "profile": "smoke",
    "output": "runs",
    "notebooks": {"01_one": {"N_CLIPS": 3}, "02_two": None},
    "matrix": {"LANGUAGE": ["ro", "no"], "SEED": [0, 1]},
    "threads": 1,
    "resources": {"mem_mb": 500, "runtime": 5},
}


def record(seed=0, value=8.4, notebook="02_two", code="a", profile="smoke", labels=None, **parameters):
    metric = {
        "name": "wer_percent",
        "value": value,
        "unit": "%",
        "interval": None,
        "labels": labels or {"corpus": "own"},
    }
    run = {"notebook": notebook, "profile": profile, "parameters": {**parameters, "SEED": seed}, "seed": seed}
    return {"metrics": [metric], "run": run | {"source_sha256": code * 64}}


def runs(values, **parameters):
    return [record(seed, value, **parameters) for seed, value in enumerate(values)]


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
    jobs = sweep.plan(two, TABLE)
    cells = [f"LANGUAGE={code}/SEED={seed}/smoke" for code in ("ro", "no") for seed in (0, 1)]
    assert list(jobs) == [f"{cell}/{name}" for name in ("01_one", "02_two") for cell in cells]
    assert jobs[f"{cells[3]}/02_two"].needs == (f"{cells[3]}/01_one",)
    assert jobs[f"{cells[3]}/01_one"].options == ("-p", "LANGUAGE=no", "-p", "SEED=1", "-p", "N_CLIPS=3")
    assert jobs[f"{cells[3]}/02_two"].options == ("-p", "LANGUAGE=no", "-p", "SEED=1")


def test_a_key_changes_with_the_code_of_the_notebook_and_of_what_it_needs(two):
    def keys():
        return {folder.rsplit("/", 1)[1]: job.key for folder, job in sweep.plan(two, TABLE).items()}

    before = keys()
    path = two / "notebooks" / "01_one.ipynb"
    path.write_text(path.read_text().replace("## Part 1", "## Part one"))
    assert keys() == before
    path.write_text(path.read_text().replace("8.4", "8.5"))
    assert {name for name, key in keys().items() if key != before[name]} == {"01_one", "02_two"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"threads": 0}, "wrong at threads: 0 is less than the minimum"),
        ({"seeds": [1]}, "wrong at top level: .*'seeds' was unexpected"),
        ({"matrix": {"SEED": []}}, "wrong at matrix/SEED"),
        ({"matrix": {"SEED": [None]}}, "wrong at matrix/SEED/0: None is not of type"),
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
        sweep.plan(two, TABLE | changes)


@given(st.dictionaries(st.sampled_from(["A", "B_1"]), st.text() | st.integers() | st.lists(st.text()), min_size=1))
def test_a_folder_stays_inside_the_sweep_whatever_the_values(values):
    folder = sweep._folder(values)
    assert len(Path(folder).parts) == len(values)
    assert not {".", ".."} & set(Path(folder).parts)
    assert folder.isascii()


def test_the_table_of_this_course_is_right():
    table = yaml.safe_load((ROOT / "workflow" / "sweep.yaml").read_text())
    assert len(sweep.plan(ROOT, table)) == math.prod(map(len, table["matrix"].values())) * len(table["notebooks"])


def test_every_parameter_of_the_course_can_be_given_what_its_profile_gives_it():
    profiles = files.read_toml(ROOT / "notebooks" / "profiles.toml")
    for book in registry.read(ROOT).values():
        values = profiles["smoke"].get(book.name, {})
        assert registry.check_parameters(book, {name: sweep._text(value) for name, value in values.items()}) == values


# ---------------------------------------------------------------------------------------------------------------- collect
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9))
def test_mean_deviation_and_interval_are_those_of_the_t_distribution(values):
    [row] = sweep.collect(runs(values))
    assert row.mean == pytest.approx(statistics.fmean(values))
    error = stats.sem(values)
    assert row.deviation == pytest.approx(error * math.sqrt(len(values)), abs=1e-6)
    if error > 1e-9:
        expected = stats.t.interval(0.95, len(values) - 1, loc=statistics.fmean(values), scale=error)
        assert row.interval == pytest.approx(expected, abs=1e-6)
    assert row.interval[0] <= row.mean <= row.interval[1]


def test_one_seed_has_neither_deviation_nor_interval():
    [row] = sweep.collect(runs([8.4]))
    assert (row.mean, row.deviation, row.interval, row.values) == (8.4, None, None, {0: 8.4})


@given(
    st.permutations(
        [record(seed, 10.0 * len(code) + seed, LANGUAGE=code) for code in ("ro", "bul") for seed in range(3)]
    )
)
def test_rows_are_the_same_in_whatever_order_the_runs_come(found):
    rows = sweep.collect(found)
    assert [(row.parameters, row.values) for row in rows] == [
        ({"LANGUAGE": "bul"}, {0: 30.0, 1: 31.0, 2: 32.0}),
        ({"LANGUAGE": "ro"}, {0: 20.0, 1: 21.0, 2: 22.0}),
    ]


def test_a_row_shows_model_and_language_and_what_differs():
    found = [record(MODEL_ID="m", STEPS=steps, CLIPS=5) for steps in (1, 2)] + [record(notebook="03_other", CLIPS=6)]
    assert [row.parameters for row in sweep.collect(found)] == [
        {"MODEL_ID": "m", "STEPS": 1}, {"MODEL_ID": "m", "STEPS": 2}, {},
    ]  # fmt: skip


def test_labels_and_profiles_tell_rows_apart():
    found = [
        record(0, 1.0, labels={"stage": "before"}),
        record(1, 2.0, labels={"stage": "after"}),
        record(0, 3.0, profile="paper"),
    ]
    assert [(row.profile, row.labels, row.values) for row in sweep.collect(found)] == [
        ("paper", {"corpus": "own"}, {0: 3.0}),
        ("smoke", {"stage": "before"}, {0: 1.0}),
        ("smoke", {"stage": "after"}, {1: 2.0}),
    ]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ([record(0), record(0)], "same parameters and seed 0"),
        ([record(0, code="a"), record(1, code="b")], "different code of the notebook"),
    ],
)
def test_what_is_not_one_experiment_is_not_averaged(found, sentence):
    with pytest.raises(AsrlibError, match=sentence):
        sweep.collect(found)


def test_the_csv_has_a_column_for_each_parameter_label_and_seed():
    found = [*runs([1.0, 2.5], LANGUAGE="ro"), record(7, 0.1, LANGUAGE="bg", labels={"split": "test|a"})]
    rows = list(csv.DictReader(io.StringIO(sweep.csv_text(sweep.collect(found)))))
    shared = {"notebook": "02_two", "profile": "smoke", "metric": "wer_percent", "unit": "%"}
    assert rows[0] == shared | {
        "LANGUAGE": "bg", "label.split": "test|a", "label.corpus": "", "seeds": "1", "mean": "0.1", "sd": "", "low": "",
        "high": "", "seed.0": "", "seed.1": "", "seed.7": "0.1",
    }  # fmt: skip
    assert (rows[1]["seed.0"], rows[1]["seed.1"], rows[1]["mean"], rows[1]["label.corpus"]) == (
        "1.0",
        "2.5",
        "1.75",
        "own",
    )


def test_the_markdown_has_a_line_for_each_row():
    text = sweep.markdown(sweep.collect([*runs([10.0, 12.0], LANGUAGE="ro"), record(3, 123456.7, labels={"a": "b|c"})]))
    assert "## 02_two, profile smoke" in text
    assert "| ro | wer_percent | corpus own | 2 | 11 | 1.414 | -1.706 to 23.71 | 0: 10, 1: 12 |" in text
    assert r"|  | wer_percent | a b\|c | 1 | 123,457 |  |  | 3: 123,457 |" in text


def test_the_command_reads_runs_and_folders_and_writes_both_tables(tmp_path, capsys):
    published = json.loads((ROOT / "results" / "00_start_here" / "record.json").read_text())
    for seed in (1, 2):
        published["run"] |= {"seed": seed, "parameters": published["run"]["parameters"] | {"SEED": seed}}
        files.write_atomic(
            tmp_path / f"SEED={seed}" / "reference" / "00_start_here" / "record.json", json.dumps(published)
        )
    assert cli.main(["sweep", str(tmp_path), str(tmp_path / "SEED=1"), "--output", str(tmp_path / "table")]) == 0
    assert "sweep.md" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "table" / "sweep.csv").read_text().splitlines()))
    assert {row["seeds"] for row in rows} == {"2"}
    assert len(rows) == len(published["metrics"])
    assert cli.main(["sweep", str(tmp_path / "SEED=1" / "reference" / "00_start_here" / "record.json")]) == 0
    assert capsys.readouterr().out.count("\n| ") == len(rows) + 2
    assert cli.main(["sweep", str(tmp_path / "table")]) == 1
    assert "no record.json" in capsys.readouterr().err


def test_a_change_of_this_module_repeats_no_run():
    assert "course/sweep.py" in registry.ROOF
