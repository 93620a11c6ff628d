import json
from pathlib import Path

import pytest

from asrlib import AsrlibError
from asrlib.course import registry, runner
from asrlib.io import files

CLEAN = {"01_one": "finished", "02_two": "finished", "03_three": "finished"}


@pytest.fixture
def three(course_folder):
    """A course where each notebook needs the one before."""
    course_folder.add("01_one", save=False)
    course_folder.add("02_two", needs=("01_one",), save=False)
    course_folder.add("03_three", needs=("02_two",), save=False)
    return course_folder


@pytest.fixture
def ends(monkeypatch):
    """Notebooks that end at once, as this dictionary says; nothing is executed."""
    statuses = dict(CLEAN)

    def watch(job, deadline, expected):
        return {"status": statuses[job.book.name]}

    monkeypatch.setattr(runner, "_watch", watch)
    return statuses


def statuses(folder, *chosen, **options):
    outcomes = runner.run(folder.root, chosen, profile="smoke", **options)
    return {outcome.notebook: outcome.status for outcome in outcomes}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "huge"}, "no profile 'huge'"),
        ({"chosen": ["9"]}, "no notebook '9'"),
        ({"given": {"N_CLIPS": "many"}}, "must be of type int"),
    ],
)
def test_a_wrong_wish_is_found_before_any_notebook_starts(three, options, message):
    with pytest.raises(AsrlibError, match=message):
        runner.run(three.root, **options)
    assert not (three.root / "build").exists()


def test_what_is_finished_and_unchanged_is_skipped_unless_forced(three, ends):
    assert statuses(three) == CLEAN
    assert statuses(three) == dict.fromkeys(CLEAN, "unchanged")
    assert statuses(three, "1", force=True) == {"01_one": "finished"}


def test_a_run_is_repeated_when_what_it_needs_gave_other_results(three, ends):
    statuses(three)
    assert statuses(three, "1", given={"N_CLIPS": "7"}) == {"01_one": "finished"}
    assert statuses(three, "2", "3") == {"02_two": "finished", "03_three": "finished"}
    assert statuses(three, "2", "3") == {"02_two": "unchanged", "03_three": "unchanged"}


def test_a_failure_is_run_again_and_stops_all_that_needs_it_old_results_or_not(three, ends):
    statuses(three)
    ends["01_one"] = "failed"
    stopped = {"01_one": "failed", "02_two": "not run", "03_three": "not run"}
    assert statuses(three, force=True) == stopped
    assert statuses(three) == stopped
    ends["01_one"] = "finished"
    assert statuses(three) == {"01_one": "finished", "02_two": "unchanged", "03_three": "unchanged"}


def test_a_run_that_was_finished_outlives_an_interrupted_repetition(three, ends, monkeypatch):
    statuses(three)
    kept = registry.run_folder(three.root, "smoke", "01_one") / "kept.txt"
    kept.write_text("made by the finished run")

    def stopped(*_):
        assert not kept.exists()  # each run begins in an empty folder
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_watch", stopped)
        with pytest.raises(KeyboardInterrupt):
            runner.run(three.root, ["1"], profile="smoke", force=True)
    assert kept.is_file() and statuses(three) == dict.fromkeys(CLEAN, "unchanged")
    kept.parent.rename(kept.parent.with_name(".01_one.before"))  # as a killed runner leaves it
    (kept.parent / "half").mkdir(parents=True)
    assert statuses(three) == dict.fromkeys(CLEAN, "unchanged") and kept.is_file()
    assert statuses(three, "1", force=True) == {"01_one": "finished"}
    assert not kept.exists() and [path.name for path in kept.parent.parent.glob(".*before")] == []


def test_an_output_folder_of_its_own_holds_a_run_and_what_it_needs(three, ends):
    own = Path("sweep/SEED=1")
    assert statuses(three, "2", output=own) == {"02_two": "not run"}
    assert statuses(three, "1", output=own) == {"01_one": "finished"}
    assert statuses(three, "2") == {"02_two": "not run"}
    assert statuses(three, "2", output=own) == {"02_two": "finished"}
    assert statuses(three, "1", "2", output=own) == {"01_one": "unchanged", "02_two": "unchanged"}
    assert registry.result(three.root / own / "smoke" / "02_two").folder == "sweep/SEED=1/smoke/02_two"
    assert not (three.root / "build").exists()


def test_the_progress_line_tells_cells_seconds_rest_and_what_the_cell_reports(three):
    job = runner._Job(three.root, registry.read(three.root)["01_one"], "smoke", {})
    files.write_atomic(job.folder / "position.json", json.dumps({"cell": 3, "cells": 8, "heading": "h"}))
    files.write_atomic(job.folder / "progress.txt", "clips: 5/64")
    assert runner._progress(job, 10, None) == "01_one: 2/8 cells, 10 s, about 30 s left | clips: 5/64"
    assert runner._progress(job, 10, 25) == "01_one: 2/8 cells, 10 s, about 15 s left | clips: 5/64"
