"""A wish that cannot be fulfilled, or a machine set up otherwise: one sentence says what is wrong, where, and what to do."""

import json
import os
import pwd

import numpy as np
import pytest
import soundfile

from asrlib import AsrlibError, cli, corpora
from asrlib.io import files
from asrlib.models import checkpoints

CLIP = "ein Örtchen/ру сский.wav"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a clip whose name has a space and Cyrillic letters, and no network."""
    from huggingface_hub import close_session, constants

    (tmp_path / CLIP).parent.mkdir()
    soundfile.write(tmp_path / CLIP, 0.1 * np.sin(np.arange(16_000) / 9), 16_000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "ein Vorrat"))
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        close_session()
        yield tmp_path
    close_session()


@pytest.fixture
def course(course_folder, monkeypatch):
    """A course of one notebook, in which the command runs."""
    course_folder.add("01_one")
    monkeypatch.setattr(files, "repository", lambda: course_folder.root)
    return course_folder


def fails(capsys, *arguments):
    """Run the command, which must fail with nothing on stdout and one line on stderr; return the line."""
    assert cli.main(list(map(str, arguments))) == 1
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith("asrlib: ") and said.count("\n") == 1
    return said


# ---- wishes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "01", "-p", "CLIPS=1"], "01_one has no parameter CLIPS: it has PROFILE, N_CLIPS, LANGUAGE, SEED."),
        (["run", "01", "-p", "N_CLIPS=many"], "01_one: N_CLIPS must be of type int, 'many' is not (clips)."),
        (["run", "01", "-p", "N_CLIPS=1.5"], "must be of type int, 1.5 is not"),
        (["run", "01", "-p", "SEED="], "must be of type int, '' is not"),
        (["run", "01", "-p", "PROFILE=smoke"], "Choose the profile with --profile"),
        (["run", "99"], "There is no notebook '99': choose among 01_one."),
        (["fetch", "99"], "There is no notebook or corpus '99'"),
        (["run", "--profile", "huge"], "There is no profile 'huge': choose one of reference, smoke."),
    ],
    ids=" ".join,
)
def test_a_parameter_a_notebook_or_a_profile_that_is_not_there(course, capsys, arguments, said):
    assert said in fails(capsys, *arguments)
    assert not (course.root / "build").exists()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (b"[smoke.01_one]\nN_CLIPS = many\n", "profiles.toml is not valid TOML"),
        (b"[smoke.01_one]\nN_CLIPS = 2 # \xff\n", "profiles.toml is not valid TOML"),
        (b"a = " + b"[" * 100_000, "profiles.toml is not valid TOML"),
        (b"[reference.01_one]\nN_CLIPS = 2\n", "There is no profile 'smoke'"),
        (None, "profiles.toml cannot be read (No such file or directory): restore the file."),
    ],
    ids=["syntax", "no UTF-8", "too deep", "no profile", "no file"],
)
def test_broken_profiles_are_named(course, capsys, table, said):
    path = course.root / "notebooks" / "profiles.toml"
    path.unlink() if table is None else path.write_bytes(table)
    assert said in fails(capsys, "run", "--profile", "smoke")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["transcribe", CLIP, "--model", "/no/such model"],
            "'/no/such model' is neither a checkpoint's folder nor an id",
        ),
        (["transcribe", CLIP, "--model", "ein Örtchen"], "ein Örtchen has no config.json of a Whisper model"),
        (["transcribe", CLIP, "--model", "a" * 300], "is neither a checkpoint's folder nor an id"),
        (["transcribe", CLIP, "--model", "nobody/none"], "nobody/none is not on this machine and the Hub cannot be"),
        (["transcribe", CLIP, "--engine", "telepathy"], "There is no engine 'telepathy': choose one of"),
        (["transcribe", "ру сский.wav"], "ру сский.wav does not exist: check the path."),
        (["evaluate", "nowhere/en/test"], "There is no corpus 'nowhere': choose one of telephone,"),
        (["evaluate", "telephone/tlh/test"], "The corpus 'telephone' has no language 'tlh': choose one of"),
        (["evaluate", "telephone/en"], "There is no folder telephone/en: check the path."),
        (["evaluate", "common_voice/en/test"], "Common Voice asks each reader to agree to its terms"),
        (["evaluate", "ein Örtchen"], "metadata.csv does not exist: write one with the columns"),
        (["compare", "ein Örtchen", "ein Örtchen"], "ein Örtchen"),
    ],
    ids=" ".join,
)
def test_a_model_an_engine_or_speech_that_is_not_there(place, capsys, arguments, said):
    assert said in fails(capsys, *arguments)


def test_a_language_that_whisper_does_not_know(place, echo, monkeypatch, capsys):
    from asrlib.decoding import transcription

    model = transcription.load("any")[0]
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setattr(transcription, "load", lambda path: (model, None))
    said = fails(capsys, "transcribe", CLIP, "--language", "klingon")
    assert said == (
        "asrlib: Whisper knows no language 'klingon': give a code such as 'en' or a name such as 'romanian'.\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        "nonsense", "run -p NAME", "run --publish --profile smoke", "run --publish -p A=1", "run --publish --output x",
        "run --timeout 0", "run --timeout soon", "run --timeout nan", "claims --verdict perhaps", "transcribe",
        "transcribe CLIP NOTES --format srt", "transcribe CLIP --format doc", "transcribe CLIP --words --format txt",
        "transcribe CLIP --format json --window merged", "transcribe CLIP --engine faster-whisper --window merged",
        "transcribe CLIP --engine faster-whisper --words --format srt", "transcribe CLIP --engine faster-whisper --vad",
        "prepare CLIP", "demo --port 0", "demo --port http", "distil telephone/en/train", "distil telephone/en --output out",
        "distil telephone/en/train --output out --steps 0", "distil telephone/en/train --output out --batch-size 2.5",
        "distil telephone/en/train --output out --learning-rate -1",
    ],
)  # fmt: skip
def test_a_value_of_another_type_and_flags_that_contradict_are_wrong_usage(place, capsys, command):
    with pytest.raises(SystemExit) as stopped:
        cli.main([{"CLIP": CLIP, "NOTES": __file__}.get(word, word) for word in command.split()])
    assert stopped.value.code == 2
    out, said = capsys.readouterr()
    assert out == "" and "Traceback" not in said
    assert said.splitlines()[-1].startswith(("asrlib: error: ", f"asrlib {command.split()[0]}: error: "))


# ---- the machine


def test_without_a_home_the_place_of_the_cache_is_asked_for(course, monkeypatch, capsys):
    def nobody(_):
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CACHE_HOME", "ASRLIB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr("asrlib.course.registry.inputs", lambda *_: (["openai/whisper-base"], []))
    said = fails(capsys, "fetch")
    assert "(the home folder is not known): set ASRLIB_CACHE to the whole path of a folder" in said
    assert not (course.root / "~").exists()
    monkeypatch.setenv("ASRLIB_CACHE", "~/cache")
    with pytest.raises(AsrlibError, match="home folder is not known"):
        files.cache_dir()
    with pytest.raises(AsrlibError, match="write the whole path instead of `~`"):
        checkpoints.fetch("~/my model")


def test_an_unset_home_is_looked_up(monkeypatch, tmp_path):
    for name in ("HOME", "XDG_CACHE_HOME", "ASRLIB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    user = pwd.struct_passwd(("me", "x", os.getuid(), 0, "", str(tmp_path / "mein Heim"), ""))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: user)
    assert files.cache_dir() == tmp_path / "mein Heim" / ".cache" / "asrlib"


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_cache_that_is_a_file_is_named(place, monkeypatch, capsys, below):
    monkeypatch.setenv("ASRLIB_CACHE", str(place / CLIP) + below)
    said = fails(capsys, "transcribe", CLIP, "--model", "nobody/none")
    assert f"The cache folder {place / CLIP}{below} cannot be made" in said
    assert "set ASRLIB_CACHE to the whole path of a folder you can write" in said


def test_a_data_folder_that_is_none_is_named(place, monkeypatch, capsys):
    monkeypatch.setenv("ASRLIB_DATA", str(place / CLIP))
    said = fails(capsys, "evaluate", "telephone/en/test")
    assert f"ASRLIB_DATA names {place / CLIP}, which is not a folder: correct it, or unset ASRLIB_DATA." in said


# ---- names with spaces and letters of other alphabets


def test_a_clip_with_spaces_and_cyrillic_letters_is_transcribed(place, echo, capsys):
    assert cli.main(["transcribe", "ein Örtchen", "--format", "srt", "--output", "мои тексты"]) == 0
    assert capsys.readouterr().out == "мои тексты/ру сский.srt\n"
    assert (place / "мои тексты" / "ру сский.srt").read_text("utf-8").endswith("hello\n\n")


def test_a_folder_with_spaces_and_umlauts_is_evaluated_and_goes_on(place, echo, capsys):
    table = 'file_name,transcription\n"ру сский.wav","привет, hello"\n'
    (place / "ein Örtchen" / "metadata.csv").write_text(table, "utf-8")
    for _ in range(2):
        arguments = ["evaluate", "ein Örtchen", "--language", "ru", "--output", "мои тексты", "--json"]
        assert cli.main(arguments) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["deletions"], found["words"]) == (1, 2)
        assert [clip["id"] for clip in found["clips"]] == ["ру сский.wav"]


def test_a_name_whose_bytes_are_no_utf_8_is_kept(place):
    """Linux allows every byte in a name."""
    from asrlib import audio

    strange = os.fsdecode(b"caf\xe9.wav")
    try:
        (place / CLIP).rename(place / strange)
    except OSError:
        pytest.skip("this file system has names of UTF-8 alone")
    assert audio.duration(place / strange) == 1
    assert len(audio.load(place / strange)) == 16_000
    path = files.write_jsonl(place / "rows.jsonl", [{"id": strange}])
    assert list(files.read_jsonl(path)) == [{"id": strange}]


def test_a_corpus_below_a_strange_name_is_read(place):
    table = "file_name,transcription\nру сский.wav,привет\n"
    (place / "ein Örtchen" / "metadata.csv").write_text(table, "utf-8")
    rows = corpora.load("folder", "ru", root=place / "ein Örtchen")
    assert rows["audio"][0]["path"] == str(place / CLIP)
