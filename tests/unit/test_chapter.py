"""What the first and the last line of a notebook do."""

import json
import os
from types import SimpleNamespace

import pytest

from asrlib import AsrlibError, scoring
from asrlib.course import chapter, records

NAME = "01_one"
CELL = {"PROFILE": "", "N_CLIPS": 4, "LANGUAGE": "en", "SEED": 1}


@pytest.fixture
def names(course_folder, monkeypatch):
    """Return a notebook's names after its parameter cell; the present folder is that of the notebooks, as for a kernel."""
    course_folder.add(NAME)
    monkeypatch.chdir(course_folder.root / "notebooks")
    monkeypatch.delenv("ASRLIB_REHEARSAL", raising=False)
    return dict(CELL)


def test_start_completes_the_notebooks_own_names(names, monkeypatch):
    assert chapter.start(NAME, names).profile == "reference"
    assert names["N_CLIPS"] == 4
    monkeypatch.setenv("ASRLIB_PROFILE", "smoke")
    run = chapter.start(NAME, names)
    assert (run.profile, run.parameters, run.seed) == ("smoke", {"N_CLIPS": 2, "LANGUAGE": "en", "SEED": 1}, 1)
    assert names["N_CLIPS"] == 2
    names |= {"PROFILE": "reference", "N_CLIPS": 4}  # the cell counts before the environment
    assert chapter.start(NAME, names).profile == "reference"
    names |= {"PROFILE": "smoke", "In": ["", "# Parameters\nN_CLIPS = 4\n"]}  # and papermill before the profile
    assert chapter.start(NAME, names).parameters["N_CLIPS"] == 4


def test_a_notebook_uses_one_gpu_unless_told_otherwise(names, monkeypatch):
    for given, used in ((None, "0"), ("1", "1"), ("0,1", "0,1")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given or "")
        if given is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        chapter.start(NAME, names)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == used


def test_without_names_those_of_the_calling_cell_are_completed(names):
    cell = dict(CELL) | {"PROFILE": "smoke"}
    exec("from asrlib.course import chapter\nrun = chapter.start('01_one')", cell)
    assert (cell["N_CLIPS"], cell["run"].parameters["N_CLIPS"]) == (2, 2)


def test_the_table_tells_value_and_origin(names):
    shown = chapter.start(NAME, names | {"PROFILE": "smoke", "LANGUAGE": "fr"})._repr_markdown_()
    assert "| `N_CLIPS` | 2 | profile `smoke` |" in shown
    assert "| `LANGUAGE` | fr | given |" in shown
    assert "| `SEED` | 1 | as in the cell above |" in shown


def test_output_goes_where_the_runner_says_else_below_build(course_folder, names, monkeypatch, tmp_path):
    assert chapter.start(NAME, names).output_dir == course_folder.root / "build" / "runs" / "reference" / NAME
    monkeypatch.setenv("ASRLIB_OUTPUT", str(tmp_path))
    assert chapter.start(NAME, names).output_dir == tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PROFILE": "huge"}, "no profile 'huge'"),
        ({"N_CLIPS": "many"}, "N_CLIPS must be of type int"),
        ({"In": ["# Parameters\nCLIPS = 4\n"]}, "01_one has no parameter CLIPS"),
    ],
)
def test_a_wrong_profile_or_parameter_is_one_sentence(names, changes, message):
    with pytest.raises(AsrlibError, match=message):
        chapter.start(NAME, names | changes)


@pytest.mark.parametrize("profile", ["colab", "paper"])
def test_a_profile_without_its_machine_is_one_sentence_and_a_rehearsal_cuts_it(
    course_folder, names, monkeypatch, tmp_path, profile
):
    course_folder.profiles({"smoke": 2, "colab": 40, "paper": 400})
    monkeypatch.setattr("asrlib.hardware.best_device", lambda: "cpu")
    with pytest.raises(AsrlibError, match=f"Profile {profile} needs a GPU.*reference"):
        chapter.start(NAME, names | {"PROFILE": profile})
    (tmp_path / "cuts.toml").write_text(f"[{profile}.{NAME}]\nN_CLIPS = 3\n")
    monkeypatch.setenv("ASRLIB_REHEARSAL", str(tmp_path / "cuts.toml"))
    assert chapter.start(NAME, names | {"PROFILE": profile}).parameters["N_CLIPS"] == 3
    monkeypatch.delenv("ASRLIB_REHEARSAL")
    monkeypatch.setattr("asrlib.hardware.best_device", lambda: "cuda")
    expected = {"colab": 40, "paper": 400}[profile]
    assert chapter.start(NAME, names | {"PROFILE": profile}).parameters["N_CLIPS"] == expected


def test_findings_scores_and_transcripts_are_in_the_record_and_the_last_cell_repeats_them(names, capsys):
    run = chapter.start(NAME, names)
    heard = [SimpleNamespace(id="a", text="one too", seconds_audio=1.0)]
    run.score(scoring.score(["one two"], ["one too"]), heard, model="m", corpus="telephone")
    finding = SimpleNamespace(text="It is <b>half</b> right.", kind="level", numbers={"value": 0.5})
    run.finding(finding, main=True)
    closing = run.close("LS-", normalizer="none")
    kept = records.load(run.output_dir / "record.json")
    assert kept["findings"] == [{"text": finding.text, "kind": "level", "main": True, "numbers": {"value": 0.5}}]
    assert kept["protocol"] == {"normalizer": "none", "seed": 1}
    (row,) = map(json.loads, (run.output_dir / "predictions.jsonl").read_text().splitlines())
    assert (row["id"], row["corpus"], row["hypothesis"], row["substitutions"]) == ("a", "telephone", "one too", 1)
    shown = closing._repr_html_()
    assert "<li>It is &lt;b&gt;half&lt;/b&gt; right.</li>" in shown
    assert "LS-01" in shown
    assert repr(closing).startswith("It is <b>half</b> right.\n")


def test_the_work_folder_follows_the_code(course_folder, names, monkeypatch, tmp_path):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path))
    first = chapter.start(NAME, names).work_dir
    assert first == chapter.start(NAME, names).work_dir
    course_folder.add(NAME, "1 + 1")
    assert chapter.start(NAME, names).work_dir != first
