"""What the runner does when notebooks fail, die, hang, or when the runner itself is stopped."""

import contextlib
import os
import select
import signal
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from programs import RUN

from asrlib.course import registry, runner
from asrlib.io import files

FAIL = '"before"\n1 / 0'
HANG = "import threading; threading.Event().wait()"
GIVEN = {"LANGUAGE": "no"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(make_course, tmp_path_factory):
    """A course of notebooks that end in different ways, run once; and the outcomes by notebook."""
    made = make_course(tmp_path_factory.mktemp("faults") / "a {course} folder")
    made.add("01_good", '"fine"')
    made.add("02_fails", FAIL)
    made.add("03_kernel", "import os; os.kill(os.getpid(), 9)")
    made.add("04_child", "import os; os.kill(os.getppid(), 9)")
    path = made.add("05_silent")
    made.add("06_needs", needs=("02_fails",))
    silent = nbformat.read(path, 4)
    silent.cells = silent.cells[:-2]
    nbformat.write(silent, path)
    with contextlib.chdir(made.root):
        outcomes = runner.run(made.root, profile="smoke", given=GIVEN)
    return made, {outcome.notebook: outcome for outcome in outcomes}


def test_a_failure_stops_neither_the_others_nor_hides(ran):
    statuses = {name: outcome.status for name, outcome in ran[1].items()}
    assert statuses == {
        "01_good": "finished",
        "02_fails": "failed",
        "03_kernel": "kernel died",
        "04_child": "failed",
        "05_silent": "failed",
        "06_needs": "not run",
    }
    assert not ran[0].folder("06_needs").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("02_fails", "in cell 3 (Part 2)\n    ZeroDivisionError: division by zero\n    See build/runs/smoke/02_fails/"),
        ("03_kernel", "in cell 3 (Part 2)\n    The kernel was killed"),
        ("04_child", "signal 9"),
        ("05_silent", "did not write record.json"),
        ("06_needs", "It needs 02_fails"),
    ],
)
def test_what_fails_or_dies_is_told_with_cell_heading_and_error(ran, name, said):
    assert said in str(ran[1][name])


def test_result_json_tells_the_same_and_nothing_else_is_left(ran):
    made, outcomes = ran
    for name in ("01_good", "02_fails", "03_kernel"):
        assert registry.result(made.folder(name)) == outcomes[name]
    left = {path.name for path in made.folder("01_good").iterdir()}
    assert left == {"notebook.ipynb", "record.json", "predictions.jsonl", "log.txt", "result.json"}
    assert outcomes["01_good"].peak_rss_mib > 0


def test_the_record_of_the_good_run_has_the_given_and_the_profiles_values(ran):
    record = registry.latest_records(ran[0].root, "smoke")["01_good"]
    assert record["run"]["parameters"] == {"SEED": 1, "N_CLIPS": 2, "LANGUAGE": "no"}


def test_a_lost_record_or_a_broken_result_makes_it_run_again(ran, monkeypatch):
    made = ran[0]
    executed = []
    monkeypatch.setattr(runner, "_execute", lambda job, *rest: executed.append(job.book.name) or job.outcome("failed"))
    for name in ("record.json", "result.json"):
        path = made.folder("01_good") / name
        content = path.read_text()
        path.write_text(content[: len(content) // 2])
        runner.run(made.root, ["1"], profile="smoke", given=GIVEN)
        path.write_text(content)
    assert executed == ["01_good", "01_good"]
    assert runner.run(made.root, ["1"], profile="smoke", given=GIVEN)[0].status == "unchanged"


def test_tracked_files_are_not_touched_by_a_run(ran):
    made = ran[0]
    notebook = nbformat.read(made.root / "notebooks" / "01_good.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert not (made.root / "results").exists()


def test_a_notebook_that_hangs_is_ended(course_folder, monkeypatch):
    course_folder.add("01_one", HANG)
    position = course_folder.folder("01_one") / "position.json"
    below, others = [], psutil.Process().children(recursive=True)  # an earlier test may have left a helper of its own

    def clock():
        """Stand still until the third cell runs; then an hour has passed."""
        if files.read_json(position).get("cell") != 3:
            return 0.0
        below.extend(set(psutil.Process().children(recursive=True)) - set(others))
        return 4000.0

    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=clock))
    outcome = runner.run(course_folder.root, profile="smoke")[0]
    assert (outcome.status, outcome.cell) == ("timed out", 3)
    assert "--timeout" in outcome.error
    assert len(below) >= 2, "child and kernel were running"
    assert not psutil.wait_procs(below, timeout=60)[1]


@pytest.mark.parametrize(
    ("sent", "code", "status"),
    [(signal.SIGTERM, 143, "interrupted"), (signal.SIGINT, 130, "interrupted"), (signal.SIGKILL, -9, None)],
)
def test_a_stopped_runner_takes_its_kernel_along(course_folder, start, sent, code, status):
    fifo = course_folder.root / "fifo"
    os.mkfifo(fifo)
    report = f"import os\nwith open({str(fifo)!r}, 'w') as told:\n    told.write(str(os.getpid()))\n{HANG}"
    course_folder.add("01_one", report)
    runner = start(RUN, cwd=course_folder.root)
    kernel = psutil.Process(int(_read(fifo)))
    runner.send_signal(sent)
    assert runner.wait(60) == code
    assert psutil.wait_procs([kernel], timeout=60)[0], "the kernel lives on"
    found = registry.result(course_folder.folder("01_one"))
    assert (found and found.status) == status
    if status:
        assert (found.cell, found.heading) == (3, "Part 2")
    assert "Traceback" not in runner.stderr.read()


def _read(fifo):
    handle = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert select.select([handle], [], [], 120)[0], "the notebook never came to its third cell"
    text = os.read(handle, 100).decode()
    os.close(handle)
    return text
