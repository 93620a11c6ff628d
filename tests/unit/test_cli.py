import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from asrlib import AsrlibError, cli
from asrlib.cli import speech
from asrlib.course import records, runner
from asrlib.course.findings import Finding
from asrlib.decoding import outcomes, subtitles, transcription, words
from asrlib.decoding.outcomes import Outcomes, whole
from asrlib.io import files
from asrlib.models import checkpoints
from asrlib.tasks import transcripts


@pytest.fixture
def tone(tmp_path):
    """A folder with a readable clip, and in it a file that is no audio."""
    samples = 0.1 * np.sin(np.arange(16_000) / 20)
    soundfile.write(tmp_path / "good.wav", samples, 16_000)
    (tmp_path / "bad.wav").write_bytes(b"RIFF but nothing else")
    return tmp_path


def asrlib(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "asrlib.cli", *arguments], capture_output=True, text=True, check=False, **options
    )


def test_help_and_import_need_neither_torch_nor_transformers():
    code = "import sys, asrlib.cli as cli; cli._parser(); sys.exit(bool({'torch', 'transformers', 'numpy', 'papermill'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "transcribe" in asrlib("--help").stdout


README = Path(__file__).parents[2] / "README.md"
SHOWN = re.findall(
    r"\.venv/bin/(asrlib (?:transcribe|prepare|evaluate|finetune|demo) .*?) *(?:#.*)?$", README.read_text("utf-8"), re.M
)


@pytest.mark.parametrize("shown", SHOWN)
def test_commands_of_the_readme_are_used_rightly(shown, tone, monkeypatch):
    monkeypatch.chdir(tone)
    for folder in ("interviews", "recordings", "my_folder"):
        Path(folder).mkdir()
        shutil.copy("good.wav", folder)
    shutil.copy("good.wav", "talk.mp3")
    Path("my_folder/metadata.csv").write_text("file_name,transcription,language\ngood.wav,a tone,en\n")
    for name in ("talk.txt", "a.txt"):
        Path(name).write_text("one two three\n")
    Path("b.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\none two\n")

    def stop(*_):
        raise AsrlibError("so far the command is right")

    monkeypatch.setattr(checkpoints, "fetch", stop)
    assert cli.main(shlex.split(shown)[1:]) == (0 if "--hypotheses" in shown else 1)


def test_outside_a_checkout_run_says_so(monkeypatch, capsys):
    monkeypatch.setattr(files, "repository", lambda: None)
    assert cli.main(["run"]) == 1
    assert "checkout" in capsys.readouterr().err


def test_a_run_ends_with_the_main_findings_and_the_verdicts(course_folder, monkeypatch, capsys):
    course_folder.add("01_one")
    folder = course_folder.folder("01_one")
    record = records.Record("01_one", "smoke", {}, folder, course_folder.root)
    for text, main in (("The answer.", True), ("An aside.", False)):
        record.finding(Finding(text, "level", {}), main=main)
    record.save()
    monkeypatch.setattr(files, "repository", lambda: course_folder.root)
    monkeypatch.setattr(runner, "_watch", lambda job, *_: (record.save(), {"status": "finished"})[1])
    assert cli.main(["run", "01", "--profile", "smoke"]) == 0
    shown = capsys.readouterr().out
    assert "\n01  The answer.\n\nThe executed notebooks are in build/runs/smoke/NAME/.\nPublished claims: " in shown
    assert "An aside" not in shown and shown.endswith("asrlib claims --profile smoke\n")


def test_claims_are_printed_and_as_json(capsys):
    assert cli.main(["claims", "LS-06"]) == 0
    assert "arithmetic fails" in capsys.readouterr().out
    assert cli.main(["claims", "--json", "LS-06", "LS-04"]) == 0
    shown = {item["id"]: item["verdict"] for item in json.loads(capsys.readouterr().out)}
    assert shown == {"LS-06": "arithmetic fails", "LS-04": "not run (needs a GPU and the weights of all six sizes)"}


def test_claims_are_chosen_by_method_and_verdict(capsys):
    assert cli.main(["claims", "--json", "--method", "librispeech", "--verdict", "arithmetic fails"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert "LS-06" in {item["id"] for item in shown}
    assert {item["verdict"] for item in shown} == {"arithmetic fails"}
    assert {item["method"] for item in shown} == {"openai LibriSpeech notebook"}
    assert cli.main(["claims", "--method", "telepathy"]) == 1
    assert "No method has 'telepathy' in its name" in capsys.readouterr().err


def test_one_bad_file_is_named_and_the_others_are_transcribed(tone, echo, capsys):
    (tone / "notes.txt").touch()
    assert cli.main(["transcribe", str(tone), str(tone / "missing.wav")]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{tone / 'good.wav'}\thello\n"
    assert [line.split()[1] for line in captured.err.splitlines()] == [
        str(tone / name) for name in ("notes.txt", "bad.wav", "missing.wav")
    ]


def test_a_folder_of_transcripts_goes_on_with_what_is_new_has_changed_or_has_failed(tone, echo, capsys):
    command = ["transcribe", str(tone), "--output", str(tone / "out")]

    def told(*options):
        code = cli.main([*command, *options])
        out, err = capsys.readouterr()
        return code, [Path(line).name for line in out.splitlines()], "bad.wav" in err, echo.pop("ids", [])

    good, bad = str(tone / "good.wav"), tone / "bad.wav"
    assert told() == (1, ["good.txt"], True, [good])
    assert told() == (1, ["good.txt"], True, [])  # what failed is tried again
    bad.write_bytes(Path(good).read_bytes())
    assert told() == (0, ["good.txt", "bad.txt"], False, [str(bad)])
    soundfile.write(good, 0.1 * np.cos(np.arange(8_000) / 20), 16_000)
    assert told() == (0, ["bad.txt", "good.txt"], False, [good])
    (tone / "out" / "bad.txt").unlink()
    assert told() == (0, ["good.txt", "bad.txt"], False, [str(bad)])
    assert told("--language", "it")[3] == [str(bad), good]
    rows = [json.loads(line) for line in (tone / "out" / "outcomes.jsonl").read_text().splitlines()]
    ended = [row["failed"] for row in rows if row["failed"] != outcomes.UNFINISHED]
    assert ["bad.wav" in failed for failed in ended] == [True, False, True, *[False] * 5]


def test_a_folder_that_was_moved_is_not_transcribed_anew(tone, echo, capsys):
    (tone / "bad.wav").unlink()
    (tone / "b").mkdir()
    soundfile.write(tone / "b" / "good.wav", 0.1 * np.cos(np.arange(8_000) / 20), 16_000)  # of the same name
    assert cli.main(["transcribe", str(tone), "--output", str(tone / "out")]) == 0
    written = capsys.readouterr().out.splitlines()
    moved = tone.rename(tone.with_name(f"{tone.name}_moved"))
    echo.clear()
    assert cli.main(["transcribe", str(moved), "--output", str(moved / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == [line.replace(str(tone), str(moved)) for line in written]
    assert "ids" not in echo
    (moved / "copy").mkdir()
    (moved / "copy" / "good.wav").write_bytes((moved / "good.wav").read_bytes())  # which is not gone
    assert cli.main(["transcribe", str(moved), "--output", str(moved / "out")]) == 0
    assert echo["ids"] == [str(moved / "copy" / "good.wav")]
    shutil.copytree(moved / "b", tone / "b")  # a new recording where the moved one was: it takes no name from it
    before = (moved / "out" / "b" / "good.wav.txt").stat().st_mtime_ns
    assert cli.main(["transcribe", str(tone), "--output", str(moved / "out")]) == 0
    assert echo["ids"] == [str(tone / "b" / "good.wav")]
    assert (moved / "out" / "b" / "good.wav.txt").stat().st_mtime_ns == before


def test_a_transcript_keeps_its_name_whatever_else_is_written_and_fails(tone, echo, capsys):
    command = ["transcribe", str(tone), "--output", str(tone / "out")]
    good = (tone / "good.wav").read_bytes()
    (tone / "bad.wav").unlink()
    for form in ("txt", "srt", "txt", "srt"):
        assert cli.main([*command, "--format", form]) == 0
    (tone / "good.wav").write_bytes(b"RIFF but nothing else")
    assert cli.main(command) == 1
    (tone / "good.wav").write_bytes(good)
    assert cli.main(command) == 0
    made = ["good.srt", "good.txt", "outcomes.jsonl", "outcomes.lock"]
    assert sorted(path.name for path in (tone / "out").iterdir()) == made


def test_two_runs_at_once_never_give_one_name_twice(tone, echo, monkeypatch):
    (tone / "b").mkdir()
    shutil.copy(tone / "good.wav", tone / "b")
    again, into = iter([1]), ["--output", str(tone / "out")]
    hear = transcription.transcribe

    def heard(*given, **options):  # the second run begins while the first one transcribes
        for _ in again:
            assert cli.main(["transcribe", str(tone / "b" / "good.wav"), *into]) == 0
        return hear(*given, **options)

    monkeypatch.setattr(transcription, "transcribe", heard)
    assert cli.main(["transcribe", str(tone / "good.wav"), *into]) == 0
    assert sorted(path.name for path in (tone / "out").glob("*.txt")) == ["good.txt", "good.wav.txt"]


def test_half_a_line_costs_no_other_outcome(tone):
    (tone / "outcomes.jsonl").write_text('{"file": "/a", "sha2')
    Outcomes(tone).add(tone / "good.wav", made="x.txt")
    again = Outcomes(tone)
    assert again.of[whole(tone / "good.wav")]["made"] == "x.txt"
    again.add(tone / "bad.wav", made="y.txt")
    assert len(Outcomes(tone).of) == 2


def test_transcripts_go_to_files_of_the_wanted_format(tone, echo, capsys):
    (tone / "bad.wav").unlink()
    (tone / "sub").mkdir()
    (tone / "sub" / "good.wav").write_bytes((tone / "good.wav").read_bytes())
    out = tone / "out"
    assert cli.main(["transcribe", str(tone), "--format", "srt", "--output", str(out), "--language", "en"]) == 0
    texts = [path.read_text() for path in out.rglob("*.srt")]
    assert texts == ["1\n00:00:00,000 --> 00:00:01,000\nhello\n\n"] * 2


def test_the_window_and_the_language_reach_the_model(tone, echo):
    good = str(tone / "good.wav")
    assert cli.main(["transcribe", good, "--window", "merged", "--language", "it"]) == 0
    assert echo == {"language": "it", "window": "merged", "timestamps": False, "ids": [good]}
    echo.clear()
    assert cli.main(["transcribe", good, "--format", "vtt", "--vad"]) == 0
    assert echo == {"language": None, "window": "full", "timestamps": True, "vad": True, "ids": [good]}
    echo.clear()
    assert cli.main(["transcribe", good, "--int8"]) == 0
    assert echo == {"language": None, "window": "full", "timestamps": False, "dtype": torch.int8, "ids": [good]}


def test_words_become_subtitles_or_stand_alone(tone, echo, capsys, monkeypatch):
    timed = [(0.1, 0.4, "hello"), (0.4, 0.6, "there,"), (0.8, 0.9, "you")]
    monkeypatch.setattr(words, "times", lambda *_: [(start, end, word) for start, end, word in timed])
    monkeypatch.setattr(subtitles.cues, "__kwdefaults__", subtitles.cues.__kwdefaults__ | {"pause": 0.1})
    command = ["transcribe", str(tone / "good.wav"), "--words", "--format"]
    assert cli.main([*command, "srt"]) == 0
    assert capsys.readouterr().out.startswith("1\n00:00:00,100 --> 00:00:00,716\nhello there,\n\n2\n00:00:00,800")
    assert cli.main([*command, "json"]) == 0
    segments = json.loads(capsys.readouterr().out)["segments"]
    assert [(part["start"], part["end"], part["text"]) for part in segments] == timed


def test_a_file_whose_words_cannot_be_timed_keeps_its_segments(tone, echo, capsys, monkeypatch):
    def refuse(*_):
        raise AsrlibError("444 tokens of text cannot be aligned.")

    monkeypatch.setattr(words, "times", refuse)
    assert cli.main(["transcribe", str(tone / "good.wav"), "--words", "--format", "srt"]) == 0
    out, err = capsys.readouterr()
    assert out == "1\n00:00:00,000 --> 00:00:01,000\nhello\n\n"
    assert "good.wav gets times of segments, not of words: 444 tokens" in err


def test_what_an_earlier_call_has_made_is_no_recording(tone, monkeypatch, capsys):
    (tone / "out").mkdir()
    (tone / "out" / "clip.flac").write_bytes((tone / "good.wav").read_bytes())
    (tone / "out" / "metadata.csv").touch()
    monkeypatch.chdir(tone)
    assert transcripts.audio_files([Path()], tone / "out") == [Path("bad.wav"), Path("good.wav")]
    assert transcripts.audio_files([tone], Path("out")) == [tone / "bad.wav", tone / "good.wav"]
    assert capsys.readouterr().err == ""
    monkeypatch.chdir(tone.parent)
    for output in (Path(), Path(tone.name), tone):  # above the recordings, or beside them, is not for transcripts alone
        found = transcripts.audio_files([Path(tone.name)], output)
        assert found[:2] == [Path(tone.name, "bad.wav"), Path(tone.name, "good.wav")]


def test_a_folder_without_audio_is_one_sentence(tmp_path, capsys):
    assert cli.main(["transcribe", str(tmp_path)]) == 1
    assert "holds no audio file" in capsys.readouterr().err


parts = st.text("ab_.", min_size=1, max_size=3).filter(lambda part: part.strip("."))
some_files = st.lists(st.lists(parts, min_size=1, max_size=3).map(lambda names: Path(*names)), min_size=1, max_size=9)


@given(some_files, some_files)
def test_names_of_transcripts_never_meet_and_stay(first, second):
    book = Outcomes(Path("nowhere"))
    everything: dict[str, str] = {}
    for paths in (first, second):
        given_names = transcripts.names(list(dict.fromkeys(paths)), "txt", book)
        for path, name in given_names.items():
            assert everything.setdefault(whole(path), name) == name
            book.of[whole(path)] = {"made": name}
    assert len({name.casefold() for name in everything.values()}) == len(everything)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.wav", "b/y.mp3"], ["x.txt", "y.txt"]),
        (["a/X.wav", "b/x.wav"], ["a/X.wav.txt", "b/x.wav.txt"]),
        (["x.wav", "x.flac", "x.flac.wav"], ["x.wav.txt", "x.flac.txt", "x.flac.wav.txt"]),
        (["a/b_c/x.wav", "a_b/c/x.wav"], ["a/b_c/x.wav.txt", "a_b/c/x.wav.txt"]),
    ],
)
def test_names_are_as_short_as_they_can_be(paths, names):
    assert list(transcripts.names([Path(path) for path in paths], "txt", Outcomes(Path("nowhere"))).values()) == names


def own_folder(tone, texts=("hello", "hello big world")):
    samples, rate = soundfile.read(tone / "good.wav")
    rows = ["file_name,transcription"]
    for number, text in enumerate(texts):
        soundfile.write(tone / f"{number}.wav", samples, rate)
        rows.append(f"{number}.wav,{text}")
    (tone / "metadata.csv").write_text("\n".join(rows))


@pytest.fixture
def evaluated(tone, echo, capsys):
    """Return a function that gives what `asrlib evaluate` finds in a folder with these texts, as JSON and as shown."""

    def run(texts, language="en"):
        own_folder(tone, texts)
        shown = []
        for options in (["--json"], []):
            assert cli.main(["evaluate", str(tone), "--language", language, *options]) == 0
            shown.append(capsys.readouterr().out)
        return json.loads(shown[0]), shown[1]

    return run


def test_evaluate_scores_a_folder(evaluated):
    found, shown = evaluated(["hello", "hello big world"])
    assert (found["wer_percent"], found["deletions"], found["words"], found["utterances"]) == (50, 2, 4, 2)
    assert found["interval"] is None
    assert shown.startswith("WER 50.00 % (no interval: only 2 clips), CER ")
    assert "1.wav: 2 errors in 3 words\n  reference   hello big world\n  hypothesis  hello" in shown


def test_evaluate_gives_an_interval_from_ten_clips_on(evaluated):
    found, shown = evaluated(["hello", "hello big world"] * 5)
    low, high = found["interval"]
    assert low < 50 < high
    assert shown.startswith(f"WER 50.00 % (95 % interval {low:.2f} to {high:.2f}), CER ")


def test_evaluate_counts_characters_where_there_are_no_spaces(evaluated):
    found, shown = evaluated(["hell o", "he llu"], "zh")
    assert (found["cer_percent"], found["substitutions"], found["words"]) == (10, 1, 10) and "wer_percent" not in found
    assert shown.startswith("CER 10.00 % (no interval: only 2 clips)\n2 clips, 10 characters: 1 substituted")


def test_evaluate_counts_a_file_that_is_listed_twice_twice(evaluated):
    found, _ = evaluated(["hello", "hello big world\n0.wav,hello"])
    assert [clip["id"] for clip in found["clips"]] == ["0.wav", "1.wav", "0.wav"]


def test_evaluate_scores_the_test_of_a_folder_with_splits(tone, echo, capsys):
    own_folder(tone, ["hello", "goodbye"])
    table = (tone / "metadata.csv").read_text().splitlines()
    splits = ("split", "test", "train")
    (tone / "metadata.csv").write_text("\n".join(f"{row},{split}" for row, split in zip(table, splits, strict=True)))
    assert cli.main(["evaluate", str(tone), "--language", "en", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [clip["id"] for clip in json.loads(out)["clips"]] == ["0.wav"]
    assert "the split test is scored, 1 of 2 clips" in err
    (tone / "metadata.csv").write_text((tone / "metadata.csv").read_text().replace(",test", ",validation"))
    assert cli.main(["evaluate", str(tone), "--language", "en", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["clips"]) == 2 and "has no split test: the clips of train, validation are scored" in err
    (tone / "metadata.csv").write_text((tone / "metadata.csv").read_text().replace(",validation", ",train"))
    assert cli.main(["evaluate", str(tone), "--language", "en"]) == 0
    assert "has no split test: the clips of train are scored" in capsys.readouterr().err  # it may have learnt from them
    (tone / "metadata.csv").write_text("\n".join(table))
    assert cli.main(["evaluate", str(tone), "--language", "en"]) == 0
    assert "split" not in capsys.readouterr().err


def test_evaluate_knows_a_folder_by_any_way_to_it_and_never_advises_to_delete_recordings(
    tone, echo, capsys, monkeypatch
):
    own_folder(tone)
    command = ["evaluate", str(tone), "--language", "en", "--output"]
    assert cli.main([*command, str(tone / "out")]) == cli.main([*command, str(tone)]) == 0
    monkeypatch.chdir(tone)
    echo.clear()
    assert cli.main(["evaluate", ".", *command[2:], "out"]) == 0
    assert "ids" not in echo
    capsys.readouterr()
    assert cli.main([*command, str(tone), "--strict"]) == 1
    said = capsys.readouterr().err
    assert "give another folder" in said and "delete" not in said


def test_evaluate_asks_for_the_language_that_decides_the_normaliser(tone, echo, capsys):
    own_folder(tone)
    assert cli.main(["evaluate", str(tone)]) == 1
    assert "--language" in capsys.readouterr().err


def test_evaluate_searches_as_it_is_told_and_writes_it_down(tone, echo, capsys):
    own_folder(tone)
    options = ["--strict", "--previous-text", "--vad", "--window", "merged", "--int8", "--batch-size", "3"]
    command = ["evaluate", str(tone), "--language", "en", "--output", str(tone / "out")]
    assert cli.main([*command, *options, "--json"]) == 0
    told = {"strict": True, "previous_text": True, "vad": True, "window": "merged", "batch_size": 3}
    assert {name: echo[name] for name in told} == told and echo["dtype"] == torch.int8
    found = json.loads(capsys.readouterr().out)
    others = {"int8": True, "engine": "asrlib", "beams": 1, "chunk": None, "assistant": None, "drafts": None}
    assert found["options"] == told | others
    assert (found["rtfx"], found["tokens_per_second"]) == (2, 2)  # clips of a second, a word and half a second each
    assert cli.main([*command, *options]) == 0
    assert "tokens/s\nsearch: engine asrlib, strict True, beams 1, batch size 3, previous" in capsys.readouterr().out
    assert cli.main(command) == 1
    assert "out belongs to another model or corpus, or to other options: delete it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--chunk", "15", "--engine", "whisper.cpp"], "--chunk goes with --engine transformers and one beam"),
        (["--chunk", "15", "--beams", "2"], "--chunk goes with --engine transformers and one beam"),
        (["--engine", "ctranslate2", "--vad"], "of the course's own loop"),
        (["--engine", "ctranslate2", "--int8"], "of the course's own loop"),
        (["--beams", "2", "--assistant", "openai/whisper-tiny.en"], "of the course's own loop"),
        (["--drafts", "2"], "--drafts goes with --assistant"),
        (["--beams", "0"], "must be 1 or more"),
        (["--hypotheses", "x.txt", "--output", "out"], "--hypotheses goes with --language and --json alone"),
        (["--hypotheses", "x.txt", "--int8"], "--hypotheses goes with --language and --json alone"),
        (["--hypotheses", "x.txt", "--beams", "2"], "--hypotheses goes with --language and --json alone"),
    ],
)
def test_evaluate_refuses_what_does_not_go_together(tone, capsys, options, said):
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", str(tone), *options])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_an_english_only_model_is_not_scored_on_another_language():
    assert speech._language(["", "en"], False) == "en"
    with pytest.raises(AsrlibError, match="The clips are in it, and an English-only model"):
        speech._language(["it", "en"], False)


def test_evaluate_names_the_engines_that_have_beams(tone, capsys):
    own_folder(tone)
    assert cli.main(["evaluate", str(tone), "--beams", "5"]) == 1
    assert "asrlib decodes greedily: leave beams at 1, or choose one of transformers, op" in capsys.readouterr().err


@pytest.mark.weights
def test_a_real_model_transcribes_from_the_command_line(tmp_path, monkeypatch, capsys):
    from asrlib import corpora, engines

    model = str(checkpoints.fetch("openai/whisper-tiny.en"))
    clip = next(row for row in corpora.load("telephone", "en", split="test") if 2 < row["seconds"] < 6)
    path = tmp_path / "clip.wav"
    path.write_bytes(clip["audio"]["bytes"] or Path(clip["audio"]["path"]).read_bytes())
    (tmp_path / "metadata.csv").write_text(f'file_name,transcription\nclip.wav,"{clip["text"]}"\n')
    assert cli.main(["transcribe", str(path), "--model", model, "--format", "json"]) == 0
    heard = json.loads(capsys.readouterr().out)
    assert heard["text"].strip()
    assert heard["segments"]
    assert cli.main(["transcribe", str(path), "--model", model, "--language", "fr"]) == 1
    assert "English-only model" in capsys.readouterr().err
    assert cli.main(["transcribe", str(path), "--model", model, "--engine", "faster-whisper", "--format", "vtt"]) == 0
    assert capsys.readouterr().out.startswith("WEBVTT\n\n00:00:0")
    assert cli.main(["transcribe", str(path), "--model", model, "--engine", "telepathy"]) == 1
    assert "There is no engine 'telepathy': choose one of asrlib, " in capsys.readouterr().err
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    monkeypatch.setattr(engines, "CONTENDERS", ("asrlib", "ctranslate2"))
    fastest = ["--model", model, "--engine", "fastest"]
    assert cli.main(["transcribe", str(broken), str(path), *fastest]) == 1  # for the broken file
    shown = capsys.readouterr()
    assert heard["text"].split()[0] in shown.out
    took = (
        r"asrlib: for \d s of this speech: asrlib [\d.]+ s, ctranslate2 [\d.]+ s. (asrlib|ctranslate2) transcribes all."
    )
    assert re.search(took, shown.err)
    assert cli.main(["transcribe", str(path), *fastest, "--format", "vtt"]) == 0
    assert re.search(took, capsys.readouterr().err)
    assert cli.main(["transcribe", str(broken), *fastest]) == 1
    assert cli.main(["evaluate", str(tmp_path), "--model", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wer_percent"] <= 100
