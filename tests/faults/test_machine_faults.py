"""A machine that fails under the work: a full disk, a read-only cache, a second run at once, a clock that went back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from programs import COMMAND, EVALUATE, FETCH, RUN, build_package, needs_dpkg

from asrlib.course import records, registry, runner

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def mounted(script, *arguments, **variables):
    """Run a shell script in which a mount concerns nobody else; skip the test where the system forbids that."""
    allowed = shutil.which("unshare") and subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if not allowed or allowed.returncode:
        pytest.skip("needs a namespace of its own for mounts (unshare -rm)")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHON": sys.executable} | variables
    return subprocess.run(
        ["unshare", "-rm", "sh", "-ec", script, "sh", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


# A command, then how it fares on a small disk, then on the same disk made larger; what it says on stderr comes out as well.
SMALL_THEN_LARGE = """
mkdir -p "$DISK"
mount -t tmpfs -o size="$SIZE" tmpfs "$DISK"
"$PYTHON" -c "$CODE" "$@" 2>&1 && echo small 0 || echo small $?
mount -o remount,size=64m "$DISK"
"$PYTHON" -c "$CODE" "$@" 2>&1 && echo large 0 || echo large $?
"""


def outcome(done):
    """Return what was said on the small disk and on the large one, each with its exit code at the end."""
    assert "Traceback" not in done.stdout, done.stdout
    small, _, large = done.stdout.partition("small ")
    code, _, large = large.partition("\n")
    return small.strip().splitlines(), int(code), large.strip().splitlines()


@needs_dpkg
def test_a_fetch_to_a_full_disk_is_one_sentence_and_goes_on_when_there_is_room(world):
    build_package(world)
    rows, disk = world / "rows.json", str(world / "disk")
    done = mounted(SMALL_THEN_LARGE, rows, DISK=disk, SIZE="300k", CODE=FETCH, ASRLIB_CACHE=disk)
    said, code, after = outcome(done)
    assert code == 1, done
    assert len(said) == 1
    assert "The disk is full while writing" in said[0]
    assert after == ["3", "large 0"]


def test_an_evaluation_on_a_full_disk_keeps_what_was_heard_and_goes_on(tmp_path):
    rows = [
        {"id": str(n), "audio": "rain snow " * 900, "text": "rain snow " * 900, "seconds": 2, "speaker": ""}
        for n in range(20)
    ]
    (tmp_path / "table.json").write_text(json.dumps(rows))
    disk = tmp_path / "disk"
    table = tmp_path / "table.json"
    done = mounted(SMALL_THEN_LARGE, table, disk, DISK=str(disk), SIZE="128k", CODE=EVALUATE)
    said, code, after = outcome(done)
    assert code == 1, done
    assert "The disk is full while writing" in said[-1]
    first, second = said.count("heard"), after.count("heard")
    assert 3 <= first < 20
    assert 20 <= first + second <= 23, "finished shards were heard again"
    assert after[-2].startswith("WER 0.0"), after  # of 1,800 words the last is left out


def test_a_training_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path, random_whisper):
    random_whisper(tmp_path / "model")
    names = [f"{number}.wav" for number in range(6)]
    for number, name in enumerate(names):
        soundfile.write(tmp_path / name, np.random.default_rng(number).normal(0, 0.1, 8000), 16_000)
    lines = [f"{name},{'ab' * number}c,en\n" for number, name in enumerate(names)]
    (tmp_path / "metadata.csv").write_text("".join(["file_name,transcription,language\n", *lines]))
    disk = tmp_path / "disk"
    options = {
        "model": tmp_path / "model",
        "context": 1,
        "steps": 2,
        "batch-size": 2,
        "every": 1,
        "output": disk / "out",
    }
    command = ["finetune", str(tmp_path), *(f"--{name}={value}" for name, value in options.items())]
    done = mounted(
        SMALL_THEN_LARGE,
        json.dumps(command),
        DISK=str(disk),
        SIZE="1800k",
        CODE=COMMAND,
        ASRLIB_CACHE=str(tmp_path / "cache"),
    )
    said, code, after = outcome(done)
    assert (
        code == 1
        and said[-1]
        == f"asrlib: The disk is full while writing {disk}/out: free some space and run the same command again."
    )
    assert after[-2].startswith("Next: asrlib evaluate ") and after[-1] == "large 0"


def test_a_course_on_a_full_disk_says_so_and_runs_when_there_is_room(course_folder):
    course_folder.add("01_one", "'a value'")
    disk = course_folder.root / "build"
    done = mounted(SMALL_THEN_LARGE, DISK=str(disk), SIZE="4k", CODE=RUN)
    said, code, after = outcome(done)
    assert code == 1, done
    assert len(said) <= 3
    assert "is full" in " ".join(said) and "free some space" in " ".join(said)
    assert any("finished" in line for line in after), after
    assert after[-1] == "large 0"


READ_ONLY = """
mount --bind "$ASRLIB_CACHE" "$ASRLIB_CACHE"
mount -o remount,ro,bind "$ASRLIB_CACHE"
"$PYTHON" -c "$CODE" "$@" 2>&1 && echo small 0 || echo small $?
"""


@needs_dpkg
def test_a_read_only_cache_serves_what_it_holds_and_is_named_when_it_lacks_something(world):
    build_package(world)
    cache = world / "cache"
    cache.mkdir(exist_ok=True)
    rows, given = str(world / "rows.json"), {"CODE": FETCH, "ASRLIB_CACHE": str(cache)}
    said, code, _ = outcome(mounted(READ_ONLY, rows, **given))
    assert (len(said), code) == (1, 1), said
    assert "cannot be written" in said[0]
    filled = subprocess.run(
        [sys.executable, "-c", FETCH, rows], env=os.environ | given | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert filled.stdout == "3\n"
    assert outcome(mounted(READ_ONLY, rows, **given)) == (["3"], 0, [])


def test_two_runs_of_the_course_at_once_execute_each_notebook_once(course_folder, start):
    ran = course_folder.root / "ran"
    course_folder.add("01_one", f"with open({str(ran)!r}, 'a') as log:\n    log.write('once ')")
    runs = [start(RUN, cwd=course_folder.root) for _ in range(2)]
    said = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert ran.read_text() == "once "
    assert sorted("unchanged" in text for text in said) == [False, True]


def test_files_from_the_future_are_neither_repeated_nor_believed_when_changed(course_folder):
    """What a clock that went back leaves: all that was written before is newer than now."""
    path = course_folder.add("01_one", "'a value'")
    assert runner.run(course_folder.root, profile="smoke")[0].status == "finished"
    future = 4_000_000_000
    for file in course_folder.root.rglob("*"):
        os.utime(file, (future, future))
    assert runner.run(course_folder.root, profile="smoke")[0].status == "unchanged"
    path.write_text(path.read_text().replace("a value", "another value"))
    os.utime(path, (1, 1))
    assert runner.run(course_folder.root, profile="smoke")[0].status == "finished"
    assert registry.result(course_folder.folder("01_one")).seconds > 0


def test_a_clock_that_goes_back_while_a_notebook_runs_gives_no_negative_time(course_folder):
    back = "import time\nnow = time.time\ntime.time = lambda: now() - 86_400"
    course_folder.add("01_one", back)
    (done,) = runner.run(course_folder.root, profile="smoke")
    assert done.status == "finished", done
    assert records.load(course_folder.folder("01_one") / "record.json")["run"]["seconds"] >= 0
