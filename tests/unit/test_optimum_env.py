"""The kernel of optimum-onnx: with this very Python on the other side, and once with the real environment."""

import os
import re
import signal
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
    if optimum_env._shared and optimum_env._shared.manager.has_kernel:
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
    door.run("for n in range(3000):\n    print(n, 'größe')\n1 + 1")
    door.run("40 + 2")
    out, _ = capfd.readouterr()
    assert out.splitlines() == [f"{number} größe" for number in range(3000)] + ["2", "42"]


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
    assert kind in "".join(caught.value.traceback)
    assert door.take("kept") == 1


def test_what_is_no_json_does_not_go_through(door):
    with pytest.raises(AsrlibError, match=r"must be JSON, or a path \(.*object"):
        door.run("", {"thing": object()})


def test_a_killed_process_is_one_sentence_and_the_next_one_is_new():
    first = optimum_env.session()
    first.run("kept = 1")
    with pytest.raises(AsrlibError, match="ended, and its variables are lost"):
        first.run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(AsrlibError, match="has ended: begin another"):
        first.run("kept")
    second = optimum_env.session()
    assert second is optimum_env.session()
    with pytest.raises(optimum_env.OptimumError, match="'kept' is not defined"):
        second.take("kept")


def test_an_interrupt_reaches_the_source_and_the_process_goes_on(monkeypatch, capsys):
    """Ctrl-C comes as soon as the source says that it runs."""
    with optimum_env.Session() as session:
        monkeypatch.setattr(sys.stdout, "write", lambda text: "running" in text and signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            session.run("import threading\nkept = 1\nprint('running')\nthreading.Event().wait()")
        assert session.take("kept") == 1


@pytest.mark.slow
def test_it_ends_with_its_parent_though_it_is_busy(start):
    process = start(
        "from asrlib.models import optimum_env\nsession = optimum_env.session()\n"
        "session.run('import os, threading; print(os.getpid()); threading.Event().wait()')"
    )
    kernel = psutil.Process(int(process.stdout.readline()))
    process.kill()
    _, alive = psutil.wait_procs([kernel], timeout=30)
    for one in alive:
        one.kill()
    assert not alive


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
    shown = re.sub(r"\x1b\[[0-9;]*m", "", "".join(capsys.readouterr()))
    assert "wrong = 1 / 0" in shown
    assert "_execute" not in shown
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
