"""SIGKILL at random points, again and again: what is there is whole, what was finished stays, and the last run completes.

The moment is no time but a number of calls, within asrlib and in what writes for it, so that every kill can be repeated. Programs
with heavy imports run as forks of one process that has made them.
"""

import json
import random
import shutil
from functools import partial
from pathlib import Path

import pytest
from programs import CONVERT, EVALUATE, FETCH, build_package, needs_dpkg

from asrlib import corpora
from asrlib.io import files
from asrlib.models import checkpoints

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
COUNT = """
import json, os, signal, sys, threading, traceback
WRITERS = ("asrlib", "pathlib", "tempfile", "shutil", "filelock", "nbformat", "papermill")
done, note = 0, os.environ["KILL_NOTE"]

def arm(at):
    def count(frame, event, argument):
        global done
        if str(frame.f_globals.get("__name__")).startswith(WRITERS):
            done += 1
            if done == at:
                os.close(os.open(note, os.O_CREAT | os.O_WRONLY))
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)
    threading.setprofile(count)

def tell():
    with open(note, "w") as out:
        out.write(str(done))
"""
FORKS = """
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the program prints
_, program, *sys.argv[1:] = sys.argv
exec(program, {})  # it makes its imports here
for line in sys.stdin:
    if not (child := os.fork()):
        code = 0
        arm(int(line))
        try:
            exec(program, {})
        except BaseException:
            traceback.print_exc()
            code = 1
        if line == "0\\n":
            tell()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
"""


@pytest.fixture
def note(tmp_path, monkeypatch):
    """The file in which a process leaves the number of its calls, or that it was killed."""
    monkeypatch.setenv("KILL_NOTE", str(tmp_path / "note"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "note"


@pytest.fixture
def forks(start, note):
    """Return a function that runs a program, and removes what it wrote; its forks can be run, and killed at a call, many times."""

    def prepare(program, *arguments, again):
        source = start(COUNT + FORKS, program, *map(str, arguments))

        def run(at):
            source.stdin.write(f"{at}\n")
            source.stdin.flush()
            return int(source.stdout.readline() or 1)

        assert run(0) == 0
        again()
        return run

    return prepare


def kills(run, times, note, again):
    """Yield after each of so many kills; a run that ended before its kill is followed by ``again``, which starts afresh."""
    assert run(0) == 0
    calls, moments = int(note.read_text()), random.Random(0)
    again()
    while times:
        note.unlink(missing_ok=True)
        code = run(moments.randrange(1, calls))
        if note.exists():
            times -= 1
            yield
        else:
            assert code == 0
            again()
    assert run(0) == 0


@needs_dpkg
def test_a_fetch_killed_15_times_is_whole_or_absent(world, forks, note):
    build_package(world)
    store = world / "cache"
    again = partial(shutil.rmtree, store)
    for _ in kills(forks(FETCH, world / "rows.json", again=again), 15, note, again):
        if corpora.available("audiobook"):
            assert len(corpora.load("audiobook")) == 3
    assert len(corpora.load("audiobook")) == 3
    assert not list(store.rglob("*.part"))


def test_a_conversion_killed_8_times_is_whole_or_absent(small, cache, forks, note):
    whole = checkpoints.fetch(small, "openai").read_bytes()
    again = partial(shutil.rmtree, cache)
    again()
    for _ in kills(forks(CONVERT, small, again=again), 8, note, again):
        if checkpoints.available(small, "openai"):
            assert checkpoints.fetch(small, "openai").read_bytes() == whole
    assert checkpoints.fetch(small, "openai").read_bytes() == whole
    assert not list(cache.rglob("*.part"))


def test_an_evaluation_killed_15_times_keeps_its_shards_and_ends_with_the_same_result(tmp_path, forks, note):
    folder, seen = tmp_path / "out", {}
    rows = [{"id": f"{n}", "audio": "rain snöw", "text": "rain snöw", "seconds": 2, "speaker": ""} for n in range(20)]
    (tmp_path / "table.json").write_text(json.dumps(rows))

    def again():
        shutil.rmtree(folder)
        seen.clear()

    for _ in kills(forks(EVALUATE, tmp_path / "table.json", folder, again=again), 15, note, again):
        for path in folder.glob("*.jsonl"):
            assert all(row["id"] for row in files.read_jsonl(path))
            written = path.stat().st_mtime_ns
            assert seen.setdefault(path.name, written) == written or not path.stem.isdigit()
    found = list(files.read_jsonl(folder / "predictions.jsonl"))
    assert [(row["id"], row["errors"], row["words"]) for row in found] == [(f"{n}", 1, 2) for n in range(20)]
    assert set(folder.glob("*.lock")) <= {folder / "run.json.lock"}
