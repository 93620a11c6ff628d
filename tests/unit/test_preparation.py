"""A data set out of recordings: what is cut, what is dropped, what is written, and what a killed or wrong run leaves."""

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from asrlib import AsrlibError, audio, cli, corpora, scoring, text
from asrlib.corpora import metadata
from asrlib.decoding import transcription
from asrlib.io import files, sound
from asrlib.tasks import labelling, preparation
from asrlib.tasks.labelling import Label, Limits

RATE = audio.SAMPLING_RATE
GOOD = Label("hello there", "en", -0.2, 0.9, 0.01)


def spoken(*spans, seconds):
    samples = np.zeros(int(seconds * RATE), np.float32)
    for start, end in spans:
        place = slice(int(start * RATE), int(end * RATE))
        samples[place] = 0.3 * np.cos(np.arange(len(samples[place])) / 5)
    return samples


@pytest.fixture
def found(monkeypatch):
    """A VAD that takes every sample that is not zero for speech."""
    from faster_whisper import vad

    def speech(samples, options):
        gap = options.min_silence_duration_ms * RATE // 1000
        loud = np.flatnonzero(samples)
        breaks = np.flatnonzero(np.diff(loud) > gap)
        starts, ends = loud[np.r_[0, breaks + 1]] if len(loud) else [], loud[np.r_[breaks, -1]] if len(loud) else []
        return [{"start": int(start), "end": int(end) + 1} for start, end in zip(starts, ends, strict=True)]

    monkeypatch.setattr(vad, "get_speech_timestamps", speech)


@pytest.fixture
def labelled(monkeypatch):
    """A model that writes how long each piece is, and so its second transcript. Lists what was labelled."""
    seen = []

    class Model:
        generation_config = SimpleNamespace(is_multilingual=False, decoder_start_token_id=1, no_timestamps_token_id=2)
        config = SimpleNamespace(max_source_positions=1500)
        proj_out = None

    def words(samples):
        return "word " * round(len(samples) / RATE)

    def label(model, processor, pieces, language):
        seen.extend(pieces)
        for piece in pieces:
            yield Label(words(piece).strip(), language, -0.1, 0.5, 0.0)

    def again(self, pieces, labels):
        yield from map(words, pieces)

    monkeypatch.setattr(labelling, "label", label)
    monkeypatch.setattr(transcription, "load", lambda model: (Model(), None))
    monkeypatch.setattr(labelling.Labeller, "_again", again)
    return seen


@pytest.fixture
def recordings(tmp_path):
    """Two recordings: of pieces of 3 and 4 s, and of one of 5 s."""
    soundfile.write(tmp_path / "one.wav", spoken((1, 4), (6, 10), seconds=11), RATE)
    soundfile.write(tmp_path / "two.wav", spoken((0.5, 5.5), seconds=6), RATE)
    return [tmp_path / "one.wav", tmp_path / "two.wav"]


def seconds(pieces):
    return [((last - first) / RATE) for first, last in pieces]


@pytest.mark.usefixtures("found")
def test_speech_is_cut_at_pauses_and_short_pieces_are_joined():
    samples = spoken((0.5, 3), (3.9, 4.8), (5.5, 9), (13, 13.5), seconds=15)
    pieces = preparation.cut(samples)
    assert seconds(pieces) == pytest.approx([4.3, 3.5, 0.5], abs=0.01)  # the last has no neighbour within a second
    assert preparation.cut(spoken(seconds=3)) == []


@pytest.mark.usefixtures("found")
@given(st.lists(st.tuples(st.floats(0.4, 3), st.floats(0.1, 8)), max_size=12))
@example([(0.5, 1.0)] * 12)
def test_no_speech_is_lost_and_no_piece_too_long_whatever_the_pauses(gaps):
    at, spans = 0.0, []
    for gap, length in gaps:
        start, at = at + gap, at + gap + length
        spans.append((start, at))
    samples = spoken(*spans, seconds=at + 1)
    pieces = preparation.cut(samples, Limits(longest=12.0))
    heard = np.zeros(len(samples), bool)
    for first, last in pieces:
        assert not heard[first:last].any()
        heard[first:last] = True
    assert heard[samples != 0].all()
    assert max(seconds(pieces), default=0) <= 12.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"text": ""}, "no words"),
        ({"text": "♪♪"}, "no words"),
        ({"text": "-"}, "no words"),
        ({"no_speech": 0.9}, "no speech"),
        ({"compression": 5.0}, "repeated text"),
        ({"in_language": 0.02}, "another language"),
        ({"logprob": -1.5}, "improbable"),
        ({"disagreement": 60.0}, "transcripts differ"),
    ],
)
def test_each_rejection_has_its_reason(change, reason):
    assert labelling.rejection(dataclasses.replace(GOOD, **change), Limits()) == reason


@pytest.mark.parametrize(
    ("language", "first", "second", "percent"),
    [
        ("en", "A b, c d", "a b x d e", 50), ("en", "", "a", 0), ("en", "a", "", 100), ("ko", "今天天气", "今天天汽", 100),
        ("zh", "今天天气", "今天 天汽。", 25), ("th", "ab cd", "abxd", 25),
    ],
)  # fmt: skip
def test_disagreement_is_an_error_rate_of_words_or_of_characters_where_there_are_no_spaces(
    language, first, second, percent
):
    assert labelling._disagreement(first, second, language) == percent


@pytest.mark.parametrize("range_", [(5, 2), (-1, 10), (2, 31)])
def test_pieces_of_impossible_lengths_are_refused(range_):
    with pytest.raises(AsrlibError, match="no such range"):
        Limits(*range_)


@pytest.mark.usefixtures("found", "labelled")
def test_a_folder_is_written_that_corpora_reads(recordings, tmp_path):
    output, other = tmp_path / "set", tmp_path / "other" / "one.wav"
    other.parent.mkdir()
    soundfile.write(other, spoken((0.5, 6.5), seconds=7), RATE)  # of the same name as another
    made = preparation.prepare([*recordings, other], output)
    assert (made.pieces, made.kept, made.dropped) == (4, 4, {})
    assert made.kept_seconds == pytest.approx(18, abs=0.01)
    rows = corpora.load("folder", root=output)
    assert sorted(rows["text"]) == [" ".join(["word"] * number) for number in (3, 4, 5, 6)]
    assert len(set(zip(rows["speaker"], rows["split"], strict=True))) == 3  # all of a recording is in one split
    assert sorted(rows["split"]) == ["test", "train", "train", "validation"]
    assert made.splits == {"train": 2, "validation": 1, "test": 1}
    assert set(rows["language"]) == {"en"} and len(set(rows["speaker"])) == 3
    assert sorted(len(audio.load(row["audio"])) for row in rows) == [3 * RATE, 4 * RATE, 5 * RATE, 6 * RATE]


@pytest.mark.usefixtures("found")
def test_what_is_dropped_is_listed_and_not_written_and_what_is_too_short_not_even_labelled(
    tmp_path, labelled, monkeypatch
):
    monkeypatch.setattr(
        preparation, "rejection", lambda label, limits: "improbable" if label.text.count("word") == 4 else ""
    )
    soundfile.write(tmp_path / "x.wav", spoken((1, 4), (6, 10), (12, 12.5), seconds=14), RATE)
    made = preparation.prepare([tmp_path / "x.wav"], tmp_path / "set")
    assert (made.pieces, made.kept, made.dropped, len(labelled)) == (3, 1, {"improbable": 1, "too short": 1}, 2)
    assert made.seconds == pytest.approx(7.5, abs=0.01) and made.kept_seconds == pytest.approx(3, abs=0.01)
    (listing,) = (tmp_path / "set/labels").iterdir()
    rows = [json.loads(line) for line in listing.read_text().splitlines()]
    assert [(row["dropped"], row["text"].count("word")) for row in rows] == [
        ("", 3),
        ("improbable", 4),
        ("too short", 0),
    ]
    assert [row["clip"] for row in rows if row["clip"]] == [
        f"clips/{path.name}" for path in (tmp_path / "set/clips").iterdir()
    ]


def recordings_of(folder):
    return {name.rsplit("-", 1)[0]: name for name in corpora.load("folder", root=folder)["speaker"]}


@pytest.mark.usefixtures("found")
def test_a_later_call_adds_what_is_new_and_replaces_what_has_changed(recordings, tmp_path, labelled):
    folder = tmp_path / "set"
    preparation.prepare(recordings[:1], folder)
    assert len(labelled) == 2
    assert preparation.prepare(recordings[1:], folder).kept == 3
    assert len(labelled) == 3
    before = recordings_of(folder)
    assert preparation.prepare(recordings, folder).kept == 3
    assert len(labelled) == 3
    soundfile.write(recordings[0], spoken((1, 5), seconds=6), RATE)
    assert preparation.prepare(recordings[:1], folder).kept == 2
    assert len(labelled) == 4
    after = recordings_of(folder)
    assert after["two"] == before["two"] and after["one"] != before["one"]


@pytest.mark.usefixtures("found")
def test_a_recording_under_another_name_enters_once(recordings, tmp_path, labelled):
    folder = tmp_path / "set"
    assert preparation.prepare(recordings, folder).kept == 3
    before = metadata.folder(folder)
    renamed = recordings[0].rename(tmp_path / "renamed.wav")
    copy = tmp_path / "copy.wav"
    copy.write_bytes(renamed.read_bytes())
    assert preparation.prepare([renamed, copy, recordings[1]], folder).kept == 3
    assert len(labelled) == 3
    assert metadata.folder(folder) == before


def corrected(folder, change):
    """Change the text of the table as people do, and return its rows."""
    path = folder / "metadata.csv"
    path.write_text(change(path.read_text()))
    return metadata.folder(folder)


@pytest.mark.usefixtures("found", "labelled")
def test_corrections_and_what_was_taken_out_stay_when_recordings_are_added(recordings, tmp_path):
    folder = tmp_path / "set"
    preparation.prepare(recordings[:1], folder)

    def change(table):
        head, first, *_ = table.splitlines()
        return f"{head},checked\n{first.replace('word word word,', chr(34) + 'one, two' + chr(34) + ',')},yes\nmine.wav,by hand,en,me,test,yes\n"

    before = corrected(folder, change)
    assert [row["transcription"] for row in before] == ["one, two", "by hand"]  # the second clip was taken out
    made = preparation.prepare(recordings, folder)
    after = metadata.folder(folder)
    assert after[:2] == before and made.kept == 2
    assert [(row["transcription"], row["split"], row["checked"]) for row in after[2:]] == [
        ("word word word word word", "validation", "")
    ]
    (folder / "metadata.csv").unlink()  # thrown away: all labels come back, in the splits that they had
    assert preparation.prepare(recordings, folder).kept == 3
    assert [row["split"] for row in metadata.folder(folder)] == ["train", "train", "validation"]


@pytest.mark.usefixtures("found", "labelled")
def test_a_run_that_is_killed_before_it_notes_the_splits_lists_each_clip_once(recordings, tmp_path):
    folder = tmp_path / "set"
    preparation.prepare(recordings, folder)
    before = corrected(folder, lambda table: table.replace("word word word word word", "five words"))
    (folder / "splits.json").unlink()
    assert preparation.prepare(recordings, folder).kept == 3
    assert metadata.folder(folder) == before


@pytest.mark.usefixtures("found")
def test_a_table_with_an_error_is_named_before_any_work_and_kept(recordings, tmp_path, labelled):
    folder = tmp_path / "set"
    preparation.prepare(recordings[:1], folder)
    labelled.clear()
    table = (folder / "metadata.csv").read_text() + 'clips/x.flac,"not closed,en,me,train\n'
    (folder / "metadata.csv").write_text(table)
    with pytest.raises(AsrlibError, match=r"metadata\.csv, line 4: a quotation mark is not closed"):
        preparation.prepare(recordings, folder)
    assert (folder / "metadata.csv").read_text() == table and not labelled


@pytest.mark.usefixtures("found", "labelled")
def test_a_recording_that_breaks_later_loses_nothing(recordings, tmp_path):
    folder = tmp_path / "set"
    preparation.prepare(recordings, folder)
    before = metadata.folder(folder)
    recordings[0].write_bytes(b"no audio")
    assert preparation.prepare(recordings, folder).failed.keys() == {str(recordings[0])}
    assert metadata.folder(folder) == before


@pytest.mark.usefixtures("labelled")
@pytest.mark.parametrize("ending", sound.CODECS)
def test_what_phones_and_browsers_record_is_cut_at_its_pauses(tmp_path, ending):
    rows = corpora.load("telephone", "en", "test").filter(
        lambda row: 3 < row["seconds"] < 6, load_from_cache_file=False
    )
    known = audio.stitch(rows, seconds=20, pause=(0.8, 1.0), seed=0)
    sound.write(path := tmp_path / f"talk{ending}", known.audio)
    assert audio.duration(path) == pytest.approx(known.seconds, abs=0.1)
    made = preparation.prepare([path], tmp_path / "set")
    (listing,) = (tmp_path / "set/labels").iterdir()
    cuts = [(row["start"], row["end"]) for row in files.read_jsonl(listing)]
    assert made.kept == len(known.segments) == len(cuts)
    for (start, end, _), (first, last) in zip(known.segments, cuts, strict=True):
        assert abs(start - first) < 0.5 and abs(end - last) < 0.6  # a prompt begins and ends with some silence


@pytest.mark.usefixtures("found")
def test_a_killed_run_is_not_believed_and_goes_on(recordings, tmp_path, labelled, monkeypatch):
    written = preparation.files.write_atomic

    def die(path, content):
        if "two-" in path.name and path.suffix == ".flac":
            raise KeyboardInterrupt
        return written(path, content)

    monkeypatch.setattr(preparation.files, "write_atomic", die)
    with pytest.raises(KeyboardInterrupt):
        preparation.prepare(recordings, tmp_path / "set")
    with pytest.raises(AsrlibError, match=r"metadata\.csv does not exist"):
        corpora.load("folder", root=tmp_path / "set")
    monkeypatch.setattr(preparation.files, "write_atomic", written)
    labelled.clear()
    assert preparation.prepare(recordings, tmp_path / "set").kept == 3
    assert len(labelled) == 1  # the first recording was finished
    next((tmp_path / "set/clips").glob("one-*.flac")).unlink()
    assert preparation.prepare(recordings, tmp_path / "set").kept == 3
    assert len(labelled) == 3  # a recording whose clip is gone is made again


@pytest.mark.usefixtures("found", "labelled")
def test_a_name_that_is_no_text_makes_clips_that_the_table_finds(recordings, tmp_path):
    odd = recordings[0].rename(os.fsdecode(bytes(tmp_path / "caf") + b"\xe9.wav"))
    preparation.prepare([odd], tmp_path / "set")
    assert all(Path(row["audio"]["path"]).is_file() for row in corpora.load("folder", root=tmp_path / "set"))


@pytest.mark.usefixtures("found", "labelled")
def test_a_model_whose_context_was_cut_does_not_label(recordings, tmp_path, monkeypatch):
    cut = SimpleNamespace(config=SimpleNamespace(max_source_positions=250), proj_out=None, name_or_path="cut")
    monkeypatch.setattr(transcription, "load", lambda model: (cut, None))
    with pytest.raises(AsrlibError, match="encoder context of cut was cut"):
        preparation.prepare(recordings, tmp_path / "set")


@pytest.mark.usefixtures("found", "labelled")
def test_a_folder_with_other_content_is_left_alone(recordings, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(AsrlibError, match="mine holds other files"):
        preparation.prepare(recordings, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(AsrlibError, match=r"thesis\.txt is a file"):
        preparation.prepare(recordings, tmp_path / "mine/thesis.txt")


@pytest.mark.usefixtures("found", "labelled")
def test_labels_of_two_settings_do_not_mix(recordings, tmp_path):
    preparation.prepare(recordings, tmp_path / "set")
    for other in ({"limits": Limits(logprob=-0.5)}, {"model": "openai/whisper-small"}, {"language": "en"}):
        with pytest.raises(AsrlibError, match="belongs to another model, language or limits"):
            preparation.prepare(recordings, tmp_path / "set", **other)


@pytest.mark.usefixtures("found", "labelled")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "one.wav is truncated"),
        (lambda path: path.write_bytes(b"no audio"), "one.wav is not audio"),
        (lambda path: soundfile.write(path, np.zeros(RATE), RATE), "one.wav is silent"),
    ],
)
def test_a_bad_recording_is_named_each_time_until_it_is_mended_and_the_others_are_prepared(
    recordings, tmp_path, capsys, spoil, reason
):
    good = recordings[0].read_bytes()
    spoil(recordings[0])
    command = ["prepare", *map(str, recordings), "--output", str(tmp_path / "set")]
    for _ in range(2):
        assert cli.main(command) == 1
        out, err = capsys.readouterr()
        assert out.startswith("1 of 1 pieces kept")
        assert reason in err and err.count("\n") == 1
        assert recordings_of(tmp_path / "set").keys() == {"two"}
    recordings[0].write_bytes(good)
    assert cli.main(command) == 0
    assert recordings_of(tmp_path / "set").keys() == {"one", "two"}


@pytest.mark.usefixtures("labelled")
def test_sound_without_speech_is_one_sentence(tmp_path, capsys):
    hum = 0.1 * np.sin(np.arange(10 * RATE) * 2 * np.pi * 50 / RATE)
    soundfile.write(tmp_path / "hum.wav", hum, RATE)
    assert cli.main(["prepare", str(tmp_path / "hum.wav"), "--output", str(tmp_path / "set")]) == 1
    assert "None of 0 pieces of speech can be kept" in capsys.readouterr().err
    assert not (tmp_path / "set/metadata.csv").exists()


@pytest.mark.usefixtures("found", "labelled")
def test_the_command_says_what_was_kept_and_where(recordings, tmp_path, capsys):
    arguments = ["prepare", *map(str, recordings), "--output", str(tmp_path / "set"), "--language", "en"]
    assert cli.main(arguments) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"3 of 3 pieces kept, 0.2 of 0.2 minutes, in {tmp_path / 'set'}."
    assert "train 2, validation 1." in second and "listen.html, the test first" in second


@pytest.mark.usefixtures("found")
def test_a_language_that_the_model_does_not_know_is_refused(recordings, tmp_path, labelled):
    with pytest.raises(AsrlibError, match="English-only model transcribes English"):
        preparation.prepare(recordings, tmp_path / "set", language="fr")


def test_the_share_of_a_language_is_that_of_transformers(random_model):
    random_model.generation_config = GenerationConfig(
        decoder_start_token_id=49,
        is_multilingual=True,
        no_timestamps_token_id=55,
        lang_to_id={"<|en|>": 50, "<|fr|>": 51},
    )
    states = torch.randn(2, 5, random_model.config.d_model)
    with torch.no_grad():
        out = random_model(encoder_outputs=BaseModelOutput(states), decoder_input_ids=torch.full((2, 1), 49))
    expected = out.logits[:, 0, [50, 51]].softmax(-1)
    for place in (0, 1):
        found = labelling._shares(random_model, states, [49, 50 + place, 52, 55])
        assert found == pytest.approx(expected[:, place].tolist(), rel=1e-4)


@pytest.fixture(scope="module")
def tiny():
    return transcription.load("openai/whisper-tiny.en", device="cpu", dtype=torch.float32)


@pytest.mark.weights
def test_labels_are_the_transcripts_and_their_probabilities_the_librarys(tiny):
    model, processor = tiny
    rows = corpora.load("telephone", "en", "test").select(range(0, 9, 3))
    pieces = [audio.load(row["audio"]) for row in rows]
    labels = list(labelling.label(model, processor, pieces, "en"))
    heard = list(transcription.transcribe(model, processor, pieces, strict=True))
    assert [label.text for label in labels] == [item.text for item in heard]
    for piece, found in zip(pieces, labels, strict=True):
        inputs = processor(piece, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        out = model.generate(**inputs, return_dict_in_generate=True, output_logits=True)
        chosen = [logits[0].log_softmax(-1).max().item() for logits in out.logits]
        assert found.logprob == pytest.approx(
            np.mean(chosen), abs=0.05
        )  # the most probable token was suppressed in none
        out = model(**{**inputs, "decoder_input_ids": torch.tensor([[model.config.decoder_start_token_id]])})
        silent = processor.tokenizer.convert_tokens_to_ids("<|nocaptions|>")
        assert found.no_speech == pytest.approx(out.logits[0, 0].softmax(-1)[silent].item(), abs=1e-4)
        assert found.in_language == 1


@pytest.mark.weights
def test_real_speech_becomes_a_data_set(tmp_path):
    rows = corpora.load("telephone", "en", "test").filter(
        lambda row: 2 < row["seconds"] < 6, load_from_cache_file=False
    )
    long = audio.stitch(rows, seconds=25, seed=0)
    soundfile.write(tmp_path / "talk.flac", long.audio, RATE)
    made = preparation.prepare([tmp_path / "talk.flac"], tmp_path / "set", model="openai/whisper-tiny.en")
    assert made.kept
    assert made.seconds <= long.seconds
    table = corpora.load("folder", root=tmp_path / "set")
    assert all(Limits().shortest <= length <= Limits().longest for length in table["seconds"])
    heard = scoring.score([long.text], [" ".join(table["text"])], normalizer=text.normalizer("en"))
    assert heard.wer < 0.5  # some pieces may be dropped


@pytest.mark.weights
def test_the_language_is_found_and_a_wrong_one_shows():
    rows = corpora.load("telephone", "it", "test")
    piece = audio.load(rows[int(np.argmax(rows["seconds"]))]["audio"])[: 8 * RATE]
    labeller = labelling.Labeller("openai/whisper-base", None, None)
    (found,) = labeller.label([piece], "x")
    assert found.language == "it"
    assert found.in_language > 0.5
    assert labelling.rejection(found, Limits(logprob=-9, disagreement=1e9)) == ""
    (told,) = labelling.label(*labeller.first, [piece], "en")
    assert labelling.rejection(told, Limits()) == "another language"
