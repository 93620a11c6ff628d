"""The command itself: wrong arguments, an output that is in the way, a disk that is full, a reader that has gone, Ctrl-C."""

import errno
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrlib import AsrlibError, cli


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Stand in a folder with a recording and a file that is none."""
    soundfile.write(tmp_path / "tone.wav", 0.1 * np.sin(np.arange(16_000) / 20), 16_000)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.chdir(tmp_path)


def said(capsys, *arguments):
    """Return exit code and last line of stderr of a command, which has printed nothing else but its usage."""
    try:
        code = cli.main(arguments)
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err and (code == 2 or err.count("\n") == 1)
    return code, err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("fetch nothing/xx", "no notebook or corpus 'nothing/xx': choose among 00_start_here, .*telephone"),
        ("fetch telephone/zz", "There is no telephone/zz: telephone has en, "),
        ("fetch 00 98", "no notebook or corpus '98'"),
        ("run 98", "no notebook '98'"),
        ("run --profile huge", "no profile 'huge'"),
        ("claims --profile huge", "no profile 'huge'"),
        ("claims LS-01 XX-1", "no claim XX-1"),
        ("compare file tone.wav", "file cannot be read as JSON"),
        ("compare . .", "There is no record record.json"),
        ("transcribe", r"required: FILE\|FOLDER"),
        ("transcribe nowhere.wav", "nowhere.wav does not exist"),
        ("transcribe tone.wav --model file", "file is a file: name a folder that save_pretrained"),
        ("evaluate nowhere", "no folder nowhere"),
        ("evaluate .", "metadata.csv does not exist"),
        ("evaluate telephone/en/other", "no split 'other'"),
        ("prepare tone.wav", "required: --output"),
        ("prepare nowhere.wav --output out", "nowhere.wav does not exist"),
        ("evaluate /no/where", "no folder /no/where"),
        ("distil telephone/en/train --output out --patience 2", "--patience goes with --validation"),
        ("distil telephone --output out", "write a corpus as CORPUS/LANGUAGE/SPLIT"),
        ("distil telephone/en/other --output out", "no split 'other'"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_nothing_is_written(place, capsys, arguments, sentence):
    before = sorted(Path().iterdir())
    code, line = said(capsys, *arguments.split())
    assert code in (1, 2)
    assert re.search(sentence, line)
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        ("run", "--timeout", ["0", "nan", "-1", "soon"]),
        ("demo", "--port", ["0", "65536", "x", "1.5"]),
        ("distil telephone/en/train --output out", "--steps", ["0", "1.5"]),
        ("distil telephone/en/train --output out", "--threshold", ["nan", "-1"]),
        ("distil telephone/en/train --output out", "--learning-rate", ["nan", "-1", "fast"]),
        ("distil telephone/en/train --output out", "--seed", ["-1", "4294967296", "x"]),
        ("finetune telephone/en/train --output out", "--seed", ["-1", "4294967296"]),
    ],
)
def test_a_number_out_of_its_range_is_wrong_usage(place, capsys, command, option, values):
    for value in values:
        code, line = said(capsys, *command.split(), f"{option}={value}")
        assert code == 2
        assert line.startswith(f"asrlib {command.split()[0]}: error: argument {option}: ")
        assert line.endswith(
            (f"invalid int value: '{value}'", f"invalid float value: '{value}'", " or more", "65535", "4294967295")
        )


@pytest.mark.parametrize(
    "command", ["run 00", "transcribe tone.wav", "evaluate .", "prepare tone.wav", "distil telephone/en/train"]
)
def test_an_output_folder_that_is_a_file_is_named_before_anything_starts(place, capsys, command):
    code, line = said(capsys, *command.split(), "--output", "file")
    assert (code, line) == (1, "asrlib: file is a file: name a folder with --output.")


def test_transcripts_beside_the_recordings_replace_no_file_that_is_there(place, echo, capsys):
    Path("tone.txt").write_text("typed by hand")
    for _ in range(2):
        assert cli.main(["transcribe", ".", "--output", "."]) == 0
        assert capsys.readouterr().out == "tone.wav.txt\n"
    assert Path("tone.txt").read_text() == "typed by hand"
    assert Path("tone.wav.txt").read_text() == "hello\n"


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "interrupted; what was finished is kept"),
        (OSError(errno.ENOSPC, "No space left on device", "x.json"), 1, "x.json cannot be read or written: No space"),
        (OSError(errno.EACCES, "Permission denied", "x.json"), 1, "x.json cannot be read or written: Permission"),
        (AsrlibError("A sentence."), 1, "A sentence."),
        (MemoryError(), 1, "The memory does not suffice"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"), 1, "The memory does not"),
    ],
)
def test_whatever_a_command_meets_is_one_sentence(monkeypatch, capsys, error, code, sentence):
    def fail(options):
        raise error

    monkeypatch.setattr("asrlib.cli.doctor.doctor", fail)
    found, line = said(capsys, "doctor")
    assert found == code
    assert line.startswith(f"asrlib: {sentence}")


def shell(line, **environment):
    """Run a command line with bash; return its exit code and what it wrote to stderr."""
    command = f'set -o pipefail; asrlib() {{ {sys.executable} -m asrlib.cli "$@"; }}; {line}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        ("asrlib claims | true", 141, ""),
        ("asrlib claims > /dev/full", 1, "asrlib: the output cannot be read or written: No space left on device.\n"),
        ("asrlib claims LS-06 >&-", 0, ""),
        ("asrlib claims XX-9 >&-", 1, "asrlib: There is no claim XX-9: `asrlib claims` lists all.\n"),
    ],
)
def test_an_output_that_is_closed_full_or_no_longer_read(line, code, sentence):
    assert shell(line) == (code, sentence)


HANG = """
import sys, threading
from asrlib import cli
from asrlib.cli import doctor

def hang(options):
    print("ready", flush=True)
    threading.Event().wait()

doctor.doctor = hang
sys.exit(cli.main(["doctor"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "sentence"),
    [(signal.SIGINT, 130, "asrlib: interrupted; what was finished is kept.\n"), (signal.SIGTERM, 143, "")],
)
def test_ctrl_c_ends_a_command_with_one_sentence(start, sent, code, sentence):
    process = start(HANG)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    assert process.wait(60) == code
    assert process.stderr.read() == sentence
