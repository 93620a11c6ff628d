"""Transcripts of several systems against one reference."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrlib import AsrlibError, alignment, cli, scoring
from asrlib.decoding import subtitles
from asrlib.decoding.batching import Hypothesis
from asrlib.tasks import comparing

words = st.lists(st.sampled_from("abcd"), max_size=60).map(" ".join)


@given(words.filter(bool), words, st.integers(1, 12))
def test_the_errors_of_stretches_add_up_to_those_of_the_whole(reference, hypothesis, size):
    parts = alignment.stretches(reference, hypothesis, size)
    assert " ".join(old for old, _ in parts) == reference
    assert " ".join(new for _, new in parts if new) == hypothesis
    assert all(size <= len(old.split()) < 2 * size for old, _ in parts) or len(parts) == 1
    whole, cut = scoring.score([reference], [hypothesis]), scoring.score(*zip(*parts, strict=True))
    assert (cut.errors.sum(), cut.words) == (whole.errors.sum(), whole.words)


@given(st.lists(st.text("ab<&>' 1", min_size=1, max_size=9).filter(str.strip), min_size=1, max_size=4))
def test_each_format_that_transcribe_writes_is_read_back(tmp_path_factory, said):
    folder = tmp_path_factory.mktemp("texts")
    spans = tuple((float(place), place + 1.0, text.strip()) for place, text in enumerate(said))
    transcript = Hypothesis("x", " ".join(text for *_, text in spans), "en", float(len(spans)), 1.0, spans)
    for kind in subtitles.FORMATS:
        path = folder / f"x.{kind}"
        path.write_text(subtitles.write(transcript, kind))
        if kind in ("srt", "vtt") and any(char in transcript.text for char in "<&"):
            continue  # a sign of the format itself, which other programs' subtitles use for styles
        assert comparing.read(path).split() == transcript.text.split()


def test_subtitles_of_others_lose_their_times_numbers_notes_and_tags(tmp_path):
    path = tmp_path / "a.vtt"
    path.write_text(
        "\ufeffWEBVTT - talk\n\nNOTE\nmade by hand\n\nintro\n00:00.000 --> 00:02.000 align:start\n<v Ann><i>Hello</i>\n3 more &amp; 4\r\n\r\n"
        "00:02.000 --> 00:03.000\nbye<00:02.500> now\n"
    )
    assert comparing.read(path).split() == ["Hello", "3", "more", "&", "4", "bye", "now"]


def test_captions_that_roll_up_are_read_once_and_what_is_said_twice_twice(tmp_path):
    rolled = tmp_path / "auto.vtt"
    rolled.write_text(
        "WEBVTT\nKind: captions\n\n"
        "00:00.000 --> 00:02.000 align:start position:0%\n \nhi<00:00.500><c> everyone</c>\n\n"
        "00:02.000 --> 00:02.010 align:start position:0%\nhi everyone\n \n\n"
        "00:02.010 --> 00:04.000 align:start position:0%\nhi everyone\nno<00:03.000><c> no</c>\n\n"
        "00:04.000 --> 00:04.010 align:start position:0%\nno no\n \n"
    )
    assert comparing.read(rolled).split() == ["hi", "everyone", "no", "no"]
    by_hand = tmp_path / "hand.srt"
    by_hand.write_text("1\n00:00:00,000 --> 00:00:01,000\nNo.\n \n2\n00:00:01,000 --> 00:00:02,000\nNo.\n")
    assert comparing.read(by_hand).split() == ["No.", "No."]


def written(folder, **texts):
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_one_long_file_is_cut_into_stretches_and_systems_are_compared(tmp_path, capsys):
    said = ["tree", "house", "river"] * 100
    good, bad = list(said), list(said)
    bad[::10] = ["wrong"] * 30
    written(tmp_path, reference=" ".join(said), good=" ".join(good), bad=" ".join(bad))
    command = ["evaluate", str(tmp_path / "reference.txt"), "--language", "en", "--hypotheses"]
    command += [str(tmp_path / "bad.txt"), str(tmp_path / "good.txt")]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["good", "bad"]
    assert "10.00 %" in out and "300 words, 20 stretches, normaliser" in out
    assert "with bad, loops capped" in out and "good is better" in out  # the others are compared with the first named
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["systems"]
    assert [(row["system"], row["wer_percent"], row["substitutions"], row["words"]) for row in found] == [
        ("good", 0, 0, 300), ("bad", 10, 30, 300)
    ]  # fmt: skip


def test_of_many_recordings_each_is_a_unit(tmp_path):
    texts = {f"r{number}": "cats and dogs run" for number in range(12)}
    reference, system = written(tmp_path / "reference", **texts), written(tmp_path / "system", **texts)
    (system / "r3.txt").write_text("cats and run")
    found = comparing.compare(reference, [system], "en")
    assert found.unit == "recording" and found.scores["system"].deletions == 1 and not found.differences
    assert len(set(found.scores["system"].blocks)) == 12


def test_what_is_missing_or_wrong_is_named(tmp_path):
    reference = written(tmp_path / "reference", a="one", b="two")
    system = written(tmp_path / "system", a="one")
    with pytest.raises(AsrlibError, match="system has no transcript of b"):
        comparing.compare(reference, [system], "en")
    (tmp_path / "bare.json").write_text('{"words": []}')
    (tmp_path / "silent.txt").write_text(" \n")
    with pytest.raises(AsrlibError, match=r"silent in .* holds no word"):
        comparing.compare(tmp_path / "silent.txt", [system / "a.txt"], "en")
    with pytest.raises(AsrlibError, match="holds a in several forms"):
        (reference / "a.srt").touch()
        comparing.compare(reference, [system], "en")
    (tmp_path / "latin.txt").write_bytes("où".encode("latin-1"))
    with pytest.raises(AsrlibError, match=r"latin\.txt cannot be read as text in UTF-8"):
        comparing.compare(system / "a.txt", [tmp_path / "latin.txt"], "en")
    with pytest.raises(AsrlibError, match=r"There is no .*gone\.txt: give"):
        comparing.compare(system / "a.txt", [tmp_path / "gone.txt"], "en")
    with pytest.raises(AsrlibError, match=r"There is no .*gone\.json: give"):
        comparing.read(tmp_path / "gone.json")
    with pytest.raises(AsrlibError, match=r"bare\.json holds no transcript"):
        comparing.read(tmp_path / "bare.json")
    with pytest.raises(AsrlibError, match="named twice"):
        comparing.compare(system / "a.txt", [system / "a.txt"] * 2, "en")


def test_hypotheses_need_a_language(tmp_path, capsys):
    written(tmp_path, a="one")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(tmp_path / "a.txt"), "--hypotheses", str(tmp_path / "a.txt")])
    assert "--hypotheses needs --language" in capsys.readouterr().err
