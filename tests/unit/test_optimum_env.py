"""The door to optimum-onnx: its protocol with this very Python on the other side, and once with the real environment."""

import os
import signal
import subprocess
import sys
import types

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError
from asrlib.models import optimum_env

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(autouse=True)
def fake(monkeypatch, request):
    """Let this Python play the other environment, and end what the test has begun."""
    if "optimum" not in request.fixturenames:
        monkeypatch.setenv("ASRLIB_OPTIMUM_PYTHON", sys.executable)
    monkeypatch.setattr(optimum_env, "_shared", None)
    yield
    if optimum_env._shared:
        optimum_env._shared.close()


@pytest.fixture(scope="module")
def door():
    """One process for all tests that leave it as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASRLIB_OPTIMUM_PYTHON", sys.executable)
        session = optimum_env.Session()
    with session:
        yield session


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON)
def test_what_goes_through_the_door_comes_back(door, value):
    assert door.run("there = here", {"here": value}, ["there"]) == {"there": value}


def test_variables_stay_and_a_path_arrives_as_text(door, tmp_path):
    door.run("import json\ndef name(path):\n    return path.rpartition('/')[2]", {"path": tmp_path})
    assert door.run("found = name(path)", wanted=["found", "path"]) == {"found": tmp_path.name, "path": str(tmp_path)}
    assert door.take("found") == tmp_path.name


def test_what_is_printed_appears_in_order_and_whole(door, capfd):
    door.run("import os, sys\nfor n in range(3000):\n    print(n, 'größe')\nos.write(2, b'of C')\n1 + 1\nNone")
    door.run("40 + 2")
    out, err = capfd.readouterr()
    assert out.splitlines() == [f"{number} größe" for number in range(3000)] + ["42"]
    assert err == "of C"


def test_output_is_streamed(door, monkeypatch, tmp_path):
    """A line is here before the source that printed it has ended, which waits for an answer to it."""
    answers = tmp_path / "answers"
    os.mkfifo(answers)
    heard = types.SimpleNamespace(write=lambda text: "first" in text and answers.write_text("seen"), flush=lambda: None)
    monkeypatch.setattr(sys, "stdout", heard)
    source = "print('first')\nwith open(answers) as file:\n    said = file.read()"
    assert door.run(source, {"answers": answers}, ["said"]) == {"said": "seen"}


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        ("raise ValueError('bad thing.\\nsecond line')", "ValueError", r"raised ValueError \(bad thing\): "),
        ("def deep():\n    1 / 0\ndeep()", "ZeroDivisionError", "division by zero"),
        ("if", "SyntaxError", "invalid syntax"),
        ("raise SystemExit", "SystemExit", "it says nothing more"),
        ("x = object()", "TypeError", "not JSON serializable"),
        ("del x", "NameError", "'x' is not defined"),
    ],
)
def test_an_error_is_one_sentence_with_its_traceback_and_the_process_goes_on(door, source, kind, said):
    door.run("x = kept = 1")
    with pytest.raises(optimum_env.OptimumError, match=said) as caught:
        door.run(source, wanted=["x"])
    assert caught.value.kind == kind
    assert "\n" not in str(caught.value)
    assert "optimum_child" not in caught.value.traceback
    assert kind in caught.value.traceback
    assert door.take("kept") == 1


def test_the_traceback_shows_the_lines_of_the_source(door):
    with pytest.raises(optimum_env.OptimumError) as caught:
        door.run("def deep(number):\n    return number / 0  # here\n\ndeep(1)")
    assert "return number / 0  # here" in caught.value.traceback
    assert "deep(1)" in "\n".join(caught.value._render_traceback_())


def test_what_is_no_json_does_not_go_through(door):
    with pytest.raises(AsrlibError, match=r"must be JSON, or a path \(.*object"):
        door.run("", {"thing": object()})


def test_a_killed_process_is_one_sentence_and_the_next_one_is_new():
    first = optimum_env.session()
    first.run("kept = 1")
    with pytest.raises(AsrlibError, match="ended by the signal SIGKILL, and its variables are lost"):
        first.run("import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(AsrlibError, match="has ended: begin another"):
        first.run("kept")
    second = optimum_env.session()
    assert second is optimum_env.session()
    with pytest.raises(optimum_env.OptimumError, match="'kept' is not defined"):
        second.take("kept")


def test_one_that_was_killed_between_two_cells_is_one_sentence():
    session = optimum_env.session()
    session.process.kill()
    session.process.wait()
    with pytest.raises(AsrlibError, match="SIGKILL"):
        session.run("1")


def test_an_interrupt_reaches_the_source_and_the_process_goes_on(monkeypatch, capsys):
    """Ctrl-C comes as soon as the source says that it runs."""
    with optimum_env.Session() as session:
        monkeypatch.setattr(sys.stdout, "write", lambda text: "running" in text and signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            session.run("import threading\nkept = 1\nprint('running')\nthreading.Event().wait()")
        assert session.take("kept") == 1


@pytest.mark.slow
def test_it_ends_with_its_parent_and_takes_along_what_it_has_started(start):
    process = start(
        "import sys\nfrom asrlib.models import optimum_env\n"
        "session = optimum_env.session()\n"
        "source = \"import subprocess; further = subprocess.Popen(['sleep', '600']).pid\"\n"
        "print(session.process.pid, session.run(source, wanted=['further'])['further'], flush=True)\n"
        "session.run('import threading; threading.Event().wait()')"
    )
    started = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    assert len(started) == 2
    process.kill()
    _, alive = psutil.wait_procs(started, timeout=30)
    for one in alive:
        one.kill()
    assert not alive


def test_closing_ends_it_though_it_is_busy():
    session = optimum_env.Session()
    session.run("import threading\nthreading.Thread(target=threading.Event().wait).start()")
    session.close()
    assert session.process.poll() is not None


@pytest.mark.slow
def test_functions_of_its_source_go_to_further_processes(door):
    source = "from asrlib.training import metering\ndef double(number):\n    return 2 * number\n"
    source += "result, _ = metering.in_fresh_process(double, 21)"
    assert door.run(source, wanted=["result"]) == {"result": 42}


def test_a_missing_environment_names_make(monkeypatch, tmp_path):
    for python, reason in ((tmp_path / "python", "No such file or directory"), (tmp_path, "Permission denied")):
        monkeypatch.setenv("ASRLIB_OPTIMUM_PYTHON", str(python))
        said = rf"does not start at {python} \({reason}\): run `make`, or `.* -m asrlib.io.environment`"
        with pytest.raises(AsrlibError, match=said):
            optimum_env.session()


@pytest.fixture
def shell():
    """An IPython with the magic."""
    from IPython.core.interactiveshell import InteractiveShell

    made = InteractiveShell()
    made.extension_manager.load_extension("asrlib.models.optimum_env")
    return made


def test_the_cell_magic_hands_over_what_its_line_names(shell, tmp_path, capsys):
    shell.user_ns |= {"folder": tmp_path, "rows": [1, 2]}
    assert shell.run_cell("%%optimum folder rows\ntotal = sum(rows)\nprint(folder)").success
    assert shell.run_cell("%%optimum\ntotal + 1").success
    assert capsys.readouterr().out == f"{tmp_path}\n4\n"
    assert optimum_env.session().take("total") == 3


def test_the_cell_magic_shows_the_traceback_of_the_cell_alone(shell, capsys):
    result = shell.run_cell("%%optimum\nwrong = 1 / 0")
    assert isinstance(result.error_in_exec, optimum_env.OptimumError)
    shown = "".join(capsys.readouterr())
    assert "wrong = 1 / 0" in shown
    assert "_answer" not in shown
    unknown = shell.run_cell("%%optimum nowhere\n1").error_in_exec
    assert "has no variable nowhere" in str(unknown)


@pytest.mark.slow
def test_the_real_environment_has_optimum_onnx_and_an_older_transformers(optimum):
    with optimum_env.Session() as session:
        source = "from importlib import metadata\nrelease = metadata.version('transformers')\n"
        source += "import asrlib, optimum.onnxruntime, torch\nshared = torch.__file__"
        found = session.run(source, wanted=["release", "shared"])
    import torch
    from packaging.version import Version

    assert Version(found["release"]) < Version("4.58")
    assert found["shared"] == torch.__file__  # no second copy


def test_it_needs_nothing_of_asrlib_on_the_other_side(tmp_path):
    """The other Python may lack every package: the script starts with the standard library alone."""
    command = [sys.executable, "-I", "-S", "-c", f"import runpy; runpy.run_path({str(optimum_env.CHILD)!r})"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).returncode == 0
