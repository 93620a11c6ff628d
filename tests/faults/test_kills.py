"""SIGKILL at random points, again and again: what is there is whole, what was finished stays, and the last run completes.

The moment is no time but a number of calls, within asrlib and in what writes for it, so that every kill can be repeated.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from test_corpus_faults import FETCH, build_package, needs_dpkg, world  # noqa: F401 - a fixture among them
from test_run_faults import RUN

from asrlib import corpora
from asrlib.course import records, registry
from asrlib.io import files
from asrlib.models import checkpoints

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
# Each Python process reads this at its start; the one whose command line holds KILL_IN counts its calls.
COUNTDOWN = """
import atexit, os, signal, sys, threading

WRITERS = ("asrlib", "pathlib", "tempfile", "shutil", "filelock", "nbformat", "papermill")
done, at = 0, int(os.environ.get("KILL_AT", 0))

def count(frame, event, argument):
    global done
    if str(frame.f_globals.get("__name__")).startswith(WRITERS):
        done += 1
        if done == at:
            os.close(os.open(os.environ["KILL_NOTE"], os.O_CREAT | os.O_WRONLY))
            os.kill(os.getpid(), signal.SIGKILL)

if os.environ.get("KILL_IN", "no process") in " ".join(sys.orig_argv):
    sys.setprofile(count)
    threading.setprofile(count)
    if not at:
        atexit.register(lambda: open(os.environ["KILL_NOTE"], "w").write(str(done)))
"""


@pytest.fixture
def kills(tmp_path):
    """Return a function that kills a program, or one that it starts, at random points."""
    hook, note = tmp_path / "hook", tmp_path / "note"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(COUNTDOWN)
    paths = {"PYTHONPATH": os.pathsep.join([str(hook), str(REPOSITORY)]), "OMP_NUM_THREADS": "1"}

    def run(command, **variables):
        note.unlink(missing_ok=True)
        environment = os.environ | paths | variables | {"KILL_NOTE": str(note)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def kill(command, times, where, again):
        """Yield after each of so many kills; a run that ended before its kill is followed by ``again``, which starts afresh."""
        whole = run(command, KILL_IN=where)
        assert whole.returncode == 0, whole.stderr
        calls, moments = int(note.read_text()), random.Random(0)
        again()
        while times:
            done = run(command, KILL_IN=where, KILL_AT=str(moments.randrange(1, calls)))
            if note.exists():
                times -= 1
                yield
            else:
                assert done.returncode == 0, done.stderr
                again()
        done = run(command)
        assert done.returncode == 0, done.stderr

    return kill


def remove(folder):
    """Empty a folder of a former run."""
    subprocess.run(["rm", "-rf", folder], check=True)


@needs_dpkg
def test_a_fetch_killed_15_times_is_whole_or_absent(world, kills):  # noqa: F811
    build_package(world)
    store = world / "cache"
    for _ in kills([sys.executable, "-c", FETCH, str(world / "rows.json")], 15, "corpora", lambda: remove(store)):
        if corpora.available("audiobook"):
            assert len(corpora.load("audiobook")) == 3
    assert len(corpora.load("audiobook")) == 3
    assert not list(store.rglob("*.part"))


CONVERT = "import sys; from asrlib.models import checkpoints; checkpoints.fetch(sys.argv[1], 'openai')"


def test_a_conversion_killed_8_times_is_whole_or_absent(small, cache, kills, monkeypatch):
    whole = checkpoints.fetch(small, "openai").read_bytes()
    for _ in kills([sys.executable, "-c", CONVERT, str(small)], 8, "checkpoints", lambda: remove(cache)):
        if checkpoints.available(small, "openai"):
            assert checkpoints.fetch(small, "openai").read_bytes() == whole
    assert checkpoints.fetch(small, "openai").read_bytes() == whole
    assert not list(cache.rglob("*.part"))


EVALUATE = """
import json, sys
from asrlib.decoding import batching
from asrlib.tasks import evaluation, sharding
sharding.WINDOW_CLIPS = 3
def hear(clips):
    for name, words in clips:
        yield batching.Hypothesis(name, words.rpartition(" ")[0], "en", 2.0, 0.5)
table = json.load(open(sys.argv[1]))
print(evaluation.evaluate(table, hear, sys.argv[2], language="en", run={}).score)
"""


def test_an_evaluation_killed_15_times_keeps_its_shards_and_ends_with_the_same_result(tmp_path, kills):
    folder, seen = tmp_path / "out", {}
    rows = [{"id": f"{n}", "audio": "rain snöw", "text": "rain snöw", "seconds": 2, "speaker": ""} for n in range(20)]
    (tmp_path / "table.json").write_text(json.dumps(rows))
    command = [sys.executable, "-c", EVALUATE, str(tmp_path / "table.json"), str(folder)]
    for _ in kills(command, 15, "evaluation", lambda: (remove(folder), seen.clear())):
        for path in folder.glob("*.jsonl"):
            assert all(row["id"] for row in files.read_jsonl(path))
            assert (
                seen.setdefault(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
                or not path.stem.isdigit()
            )
    found = list(files.read_jsonl(folder / "predictions.jsonl"))
    assert [(row["id"], row["errors"], row["words"]) for row in found] == [(f"{n}", 1, 2) for n in range(20)]
    assert not list(folder.glob("*.lock")) or list(folder.glob("*.lock")) == [folder / "run.json.lock"]


@pytest.mark.parametrize(
    ("process", "times"), [("import cli", 6), ("asrlib.course.runner", 4), ("ipykernel_launcher", 4)]
)  # fmt: skip
def test_a_run_of_the_course_killed_at_random_points_is_believed_only_when_it_finished(
    course_folder, kills, process, times
):
    path = course_folder.add("01_one", "'a value'")
    folder, tracked = course_folder.folder("01_one"), path.read_bytes()
    for _ in kills([sys.executable, "-c", RUN], times, process, lambda: remove(folder)):
        outcome = registry.result(folder)
        if outcome and outcome.good:
            assert records.load(folder / "record.json")["run"]["profile"] == "smoke"
    assert registry.result(folder).status == "finished"
    assert records.load(folder / "record.json")["metrics"]
    assert {path.name for path in folder.iterdir()} == {
        "notebook.ipynb", "record.json", "predictions.jsonl", "log.txt", "result.json"
    }  # fmt: skip
    assert path.read_bytes() == tracked
