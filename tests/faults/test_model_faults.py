"""Weights, archives and tables that somebody forged, and commands that nobody means: refused, never run, never a traceback."""

import argparse
import contextlib
import io
import json
import os
import re
import struct
import subprocess
import sys

import nbformat
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, cli
from asrlib.corpora import sources as corpus_sources
from asrlib.course import claims, parameters, registry
from asrlib.decoding import transcription
from asrlib.io import files
from asrlib.models import checkpoints

ROOT = files.repository()
fixed = [HealthCheck.function_scoped_fixture]


# ---- code that comes with a model


def sources():
    """Yield name and text of everything in the repository that is run."""
    for folder in ("asrlib", "benchmarks", "workflow", "docs"):
        for path in sorted((ROOT / folder).rglob("*.py")) if (ROOT / folder).is_dir() else []:
            yield str(path.relative_to(ROOT)), path.read_text("utf-8")
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        cells = nbformat.read(path, 4).cells
        yield path.name, "\n".join(cell.source for cell in cells if cell.cell_type == "code")


@pytest.mark.parametrize(
    "forbidden",
    [
        r"trust_remote_code",
        r"\bpickle\.loads?\(|\btorch\.load\(|\bjoblib\.load\(|allow_pickle=True",
        r"weights_only=False",
        r"use_safetensors=False",
        r"\byaml\.(unsafe_load|full_load)\(|\byaml\.load\((?!.*SafeLoader)",
        r"(?<![\w.])eval\(|(?<![\w.])exec\(",
        r"\.extractall\(|shutil\.unpack_archive\(",
        r"shell=True|os\.system\(",
        r"verify=False|_create_unverified_context",
    ],
)
def test_nothing_that_would_run_what_a_stranger_wrote(forbidden):
    assert [name for name, text in sources() if re.search(forbidden, text)] == []


@pytest.mark.parametrize("key", ["_attn_implementation_internal", "_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("value", ["evil/kernel", "evil/kernel@v1:attend", {"": "evil/kernel"}])
def test_a_configuration_that_names_code_on_the_hub_is_refused(small, cache, key, value):
    """CVE-2026-4372: transformers from 4.56 to 5.2 runs it, whatever trust_remote_code says."""
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {key: value}))
    for work in (checkpoints.fetch, transcription.load, lambda path: checkpoints.fetch(path, "ggml")):
        with pytest.raises(AsrlibError, match=r"config\.json names code on the Hub for its attention"):
            work(small)
    (small / "config.json").write_text(json.dumps(config | {key: "eager", "_attn_implementation_autoset": True}))
    assert checkpoints.fetch(small) == small


# ---- safetensors


def safetensors(header, data=b""):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        struct.pack("<Q", 100_000_001) + b"{" * 64,
        safetensors(b"[" * 50_000),
        safetensors({"a": TENSOR | {"shape": [2**62, 2**62]}}, bytes(8)),
        safetensors({"a": TENSOR | {"data_offsets": [0, 2**60]}}, bytes(8)),
        safetensors({"a": TENSOR | {"dtype": "OBJECT"}}, bytes(8)),
        safetensors({"a": TENSOR, "b": TENSOR}, bytes(8)),
    ],
    ids=lambda content: content[:24].hex(),
)
def test_forged_safetensors_are_refused(small, cache, content):
    (small / "model.safetensors").write_bytes(content)
    for work in (checkpoints.fetch, transcription.load, lambda path: checkpoints.fetch(path, "openai")):
        with pytest.raises(AsrlibError, match=r"model\.safetensors is damaged or truncated") as caught:
            work(small)
        assert "\n" not in str(caught.value)


@settings(max_examples=200, suppress_health_check=fixed)
@given(changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_of_safetensors_are_refused_or_only_other_numbers(small, cache, changes):
    path = small / "model.safetensors"
    whole = path.read_bytes()
    content = bytearray(whole)
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    try:
        assert checkpoints.fetch(small) == small
    except AsrlibError as error:
        assert "\n" not in str(error)
    finally:
        path.write_bytes(whole)


def test_every_cut_of_safetensors_is_noticed(small):
    path = small / "model.safetensors"
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(AsrlibError, match="damaged or truncated"):
            checkpoints.fetch(small)


def test_a_link_to_nowhere_is_refused_and_a_link_to_weights_is_followed(small, tmp_path):
    weights = small / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    assert checkpoints.fetch(small) == small
    (tmp_path / "elsewhere").unlink()
    with pytest.raises(AsrlibError, match=r"model\.safetensors is damaged or truncated"):
        checkpoints.fetch(small)


# ---- archives


# ---- tables

DEEP = b"[" * 100_000
LETTERS = st.text(st.sampled_from('{}[]":,=.#-_ \n\\ae01tfun\x00é'), max_size=40).map(str.encode)
BYTES = st.binary(max_size=60) | LETTERS


@settings(max_examples=400, suppress_health_check=fixed)
@given(content=BYTES)
@example(content=DEEP)
@example(content=b"a = " + DEEP)
@example(content=b'{"a":' * 100_000)
@example(content=b"1" * 10_000)
@example(content=b"\xff\xfe\x00")
@example(content=b"[1]\n3\nnull\n")
@pytest.mark.parametrize("reader", [files.read_toml, files.read_json, lambda path: list(files.read_jsonl(path))])
def test_any_bytes_are_a_table_or_one_sentence_that_names_the_file(tmp_path, reader, content):
    path = tmp_path / "table"
    path.write_bytes(content)
    try:
        found = reader(path)
    except AsrlibError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 1000
    else:
        assert all(isinstance(row, dict) for row in (found if isinstance(found, list) else [found]))


@settings(max_examples=100, suppress_health_check=fixed)
@given(
    content=st.text(max_size=60) | st.sampled_from(["- &a [*a]", "!!python/object/apply:os.system [true]", "- id: 1"])
)
def test_any_text_is_no_list_of_claims_and_runs_nothing(tmp_path, content):
    path = tmp_path / "claims.yaml"
    path.write_text(content, "utf-8")
    try:
        assert claims.load(path) == []
    except AsrlibError as error:
        assert str(path) in str(error)


VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["1", "-1", "1.5", "true", "null", "[]", "{}", '"a"', "NaN", "1e400", "[1, 2", "ro", ""]
)


@settings(max_examples=150, suppress_health_check=fixed)
@given(name=st.sampled_from(["N_CLIPS", "LANGUAGE", "SEED", "PROFILE", "CLIPS", ""]), value=VALUES)
def test_any_text_is_a_value_of_the_right_type_or_one_sentence(course_folder, name, value):
    if not course_folder.entries:
        course_folder.add("01_one")
    book = registry.read(course_folder.root)["01_one"]
    try:
        found = registry.check_parameters(book, {name: value})
    except AsrlibError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(found[name], str if name == "LANGUAGE" else int)


@settings(max_examples=150, suppress_health_check=fixed)
@given(value=st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2))
def test_a_profile_gives_a_value_of_the_notebooks_type_or_one_sentence(value):
    known = parameters.declared("N_CLIPS: int = 4  # clips", "01_one")
    try:
        found = parameters.complete("01_one", known, {"N_CLIPS": 4}, set(), {"N_CLIPS": value})
    except AsrlibError as error:
        assert "\n" not in str(error)
    else:
        assert type(found["N_CLIPS"][0]) is int


# ---- the command


@pytest.fixture(scope="module")
def known():
    """The commands with their options, as the parser has them."""
    actions = cli._parser()._actions
    commands = next(action for action in actions if isinstance(action, argparse._SubParsersAction)).choices
    return {name: [text for action in own._actions for text in action.option_strings] for name, own in commands.items()}


@pytest.fixture
def harmless(course_folder, monkeypatch, tmp_path):
    """Commands that check their arguments as ever, and stop where the work, or a question to the network, would begin."""
    from asrlib import engines
    from asrlib.cli import doctor
    from asrlib.course import runner
    from asrlib.io import hub
    from asrlib.tasks import demo, preparation
    from asrlib.training import distillation

    def stop(*_, **__):
        raise AsrlibError("Here the work would begin.")

    listed = claims.load()
    course_folder.add("01_one")
    monkeypatch.setattr(files, "repository", lambda: course_folder.root)
    monkeypatch.setattr(claims, "load", lambda: listed)
    monkeypatch.setattr(runner, "_execute", lambda job, *rest: job.outcome("failed", error="not run"))
    monkeypatch.setattr(doctor, "diagnose", lambda root: iter([]))
    monkeypatch.setattr(hub, "listing", lambda *_: None)
    for module, name in (
        (checkpoints, "fetch"), (corpus_sources, "rows_of"), (transcription, "load"), (engines, "load"), (preparation, "prepare"),
        (demo, "serve"), (distillation, "distil"), (subprocess, "run"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, stop)
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    (course_folder.root / "clip.wav").write_bytes(b"RIFF")
    return course_folder


# None leads out of the present folder, where a command may write what it is asked to.
ODD = ["", "-", "--", "0", "1", "-1", "1e9", "nan", "inf", "²", "01", "99", "a=b", "N_CLIPS=1", "N_CLIPS=[", "=", "clip.wav",
       ".", "notebooks", "en", "klingon", "telephone/en/test", "telephone/xx/test", "fleurs/ro/test", "a/b/c", "a//",
       "folder/en/test", "srt", "txt", "merged", "holds", "LS-02", "smoke", "~", "~nobody/x", "%s", "{}", "\udcff.wav"]  # fmt: skip
LETTER = st.characters(exclude_categories=["Cs"], exclude_characters="\0/.")
VALUE = st.sampled_from(ODD) | st.text(LETTER, max_size=12)


@pytest.mark.slow
@settings(max_examples=600, suppress_health_check=fixed)
@given(data=st.data())
def test_any_command_line_ends_with_a_code_and_at_most_one_sentence(harmless, known, data):
    name = data.draw(st.sampled_from([*sorted(known), "-h", "--version"]) | VALUE)
    words = st.one_of(VALUE, st.sampled_from(known.get(name, ["--help", "--version"])))
    arguments = [name, *data.draw(st.lists(words, max_size=7))]
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            code = cli.main(arguments)
        except SystemExit as stopped:
            code = stopped.code
            assert code in (0, 2), arguments
            assert code == 0 or re.search(r"^asrlib.*: error: ", said.getvalue(), re.MULTILINE)
        else:
            assert code in (0, 1), arguments
            assert said.getvalue() == "" if code == 0 else said.getvalue() or name in ("run", "doctor")
            sentences = [line for line in said.getvalue().splitlines() if line.startswith("asrlib: ")]
            assert (
                len([line for line in sentences if " is left out: " not in line]) <= 1
            )  # a folder's other files are named


def test_every_command_has_its_help(known, capsys):
    for arguments in (["-h"], *([name, "-h"] for name in known)):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 0
        assert capsys.readouterr().out.startswith("usage: asrlib")


def test_any_bytes_of_a_name_end_a_command_without_a_traceback(tmp_path):
    """What a shell hands over need not be UTF-8."""
    import subprocess

    command = [sys.executable, "-m", "asrlib.cli", "transcribe", os.fsencode(tmp_path) + b"/caf\xe9.wav"]
    done = subprocess.run(command, capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"does not exist: check the path." in done.stderr
