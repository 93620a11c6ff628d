"""Long recordings: against the library's ``generate`` without tests, against openai-whisper with them; times and their tokens."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation import WhisperTimeStampLogitsProcessor
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from asrlib import audio, scoring, text, whisper
from asrlib.decoding import features, guards, longform, timestamps, transcription
from asrlib.decoding.batching import Clip
from asrlib.decoding.search import Found
from asrlib.models import checkpoints

END, BEGIN = 20, 30  # of a small vocabulary: 20 words, the end, some special tokens, the times, added words
GENERATION = GenerationConfig(
    eos_token_id=END, no_timestamps_token_id=BEGIN - 1, max_initial_timestamp_index=5, decoder_start_token_id=END + 1,
    is_multilingual=False,
)  # fmt: skip
TIMES = whisper.time_tokens(GENERATION)
texts = st.lists(st.integers(0, 19) | st.integers(BEGIN, BEGIN + 60), max_size=6)


@pytest.mark.weights
@pytest.mark.parametrize("seconds", [12, 75])
def test_windows_are_cut_as_generate_cuts_them(tiny_en, speech, seconds):
    model, processor = tiny_en
    long = audio.stitch(speech, seconds=seconds, seed=0)
    (heard,) = transcription.transcribe(model, processor, [long.audio], timestamps=True, strict=True)
    sound = features.long_log_mel(processor, long.audio)
    sound = torch.nn.functional.pad(sound, (0, max(0, 3000 - sound.shape[2])), value=float(sound.min()))
    out = model.generate(sound, return_timestamps=True, return_segments=True)
    decode = processor.tokenizer.decode
    theirs = [
        (float(part["start"]), float(part["end"]), decode(part["tokens"], skip_special_tokens=True).strip())
        for part in out["segments"][0]
    ]
    theirs = [(start, min(end, long.seconds), text) for start, end, text in theirs if start < long.seconds]
    assert [text for *_, text in heard.segments] == [text for *_, text in theirs]
    ours = np.array([times for *times, _ in heard.segments])
    assert ours == pytest.approx(np.array([times for *times, _ in theirs]), abs=0.011)


@pytest.mark.weights
@pytest.mark.parametrize("before", [False, True])
def test_words_are_those_of_openai_whisper(tiny_en, speech, before, monkeypatch):
    """At temperature 0, its tests as published, with and without the text before a window."""
    openai = pytest.importorskip("whisper")
    monkeypatch.setattr(guards, "TEMPERATURES", (0.0,))
    peer = openai.load_model(str(checkpoints.fetch("openai/whisper-tiny.en", format="openai")), device="cpu")
    long = [audio.stitch(speech, seconds=seconds, seed=seconds).audio for seconds in (50, 34)]
    ours = list(transcription.transcribe(*tiny_en, long, previous_text=before))
    options = {"language": "en", "fp16": False, "temperature": 0.0, "condition_on_previous_text": before}
    for heard, samples in zip(ours, long, strict=True):
        theirs = peer.transcribe(samples, **options)
        assert heard.text.split() == theirs["text"].split()
        parts = [(part["start"], part["text"].strip()) for part in theirs["segments"] if part["text"]]
        assert [text for *_, text in heard.segments] == [text for _, text in parts]
        assert [start for start, *_ in heard.segments] == pytest.approx([start for start, _ in parts])


@pytest.mark.weights
def test_recordings_side_by_side_are_heard_as_each_alone(speech):
    """In double precision, for products are rounded differently side by side: no two tokens are tied to its last digits."""
    model, processor = transcription.load("openai/whisper-tiny.en", device="cpu", dtype=torch.float64)
    long = [audio.stitch(speech, seconds=seconds, seed=0).audio for seconds in (40, 8)]
    alone = list(transcription.transcribe(model, processor, long, batch_size=1, timestamps=True))
    together = list(transcription.transcribe(model, processor, long, timestamps=True))
    assert [(heard.text, heard.segments) for heard in alone] == [(heard.text, heard.segments) for heard in together]
    assert [heard.segments[-1][1] > seconds for heard, seconds in zip(alone, (30, 4), strict=True)] == [True] * 2
    assert alone[0].seconds_audio == len(long[0]) / 16_000


@pytest.mark.weights
def test_a_voice_detector_keeps_the_words_and_their_times(tiny_en, speech):
    pytest.importorskip("faster_whisper")
    said = audio.stitch(speech, seconds=6, seed=0)
    long = np.concatenate([said.audio, np.zeros(40 * 16_000, np.float32), said.audio])
    (heard,) = transcription.transcribe(*tiny_en, [long], vad=True)
    normalize = text.normalizer("en")
    assert scoring.score([f"{said.text} {said.text}"], [heard.text], normalizer=normalize).wer < 0.3
    assert not [part for part in heard.segments if part[1] > said.seconds + 1 and part[0] < said.seconds + 39]
    assert max(end for _, end, _ in heard.segments) > said.seconds + 42
    hiss = 1e-4 * np.random.default_rng(0).standard_normal(5 * 16_000).astype(np.float32)
    (nothing,) = transcription.transcribe(*tiny_en, [hiss], vad=True)
    assert (nothing.text, nothing.segments) == ("", ())


windows = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 3), st.integers(0, 60)), min_size=1, max_size=8
)  # pause, tokens of text and length of a segment, in steps of 20 ms


@given(windows, st.integers(0, 40), st.integers(1, 3000))
def test_a_window_is_cut_as_the_library_cuts_it(window, cut_off, frames):
    at, tokens = 0, []
    for pause, words, length in window:
        tokens += [BEGIN + at + pause, *range(words), BEGIN + at + pause + length]
        at += pause + length
    tokens = tokens[: max(1, len(tokens) - cut_off)]
    seconds = {"time_precision": 0.02, "time_precision_features": 0.01}
    theirs, gone = WhisperGenerationMixin._retrieve_segment(
        torch.tensor(tokens), [None], [0.0], BEGIN, [frames], **seconds, input_stride=2, prev_idx=0, idx=0,
        return_token_timestamps=False, decoder_input_ids=torch.zeros(1, 3),
    )  # fmt: skip
    ours, done = timestamps.cut(tokens, TIMES, frames)
    assert done == (gone or frames)
    for (start, end, written), part in zip(ours, theirs, strict=True):
        assert (start / 100, end / 100) == pytest.approx((float(part["start"]), float(part["end"])), abs=0.0201)
        assert [token for token in written if token < BEGIN] == [token for token in part["tokens"] if token < BEGIN]


@given(st.lists(texts, min_size=1, max_size=3), st.integers(0, 99))
def test_rules_for_times_are_the_librarys(written, seed):
    size = min(map(len, written))
    tokens = torch.tensor([[END + 1, *row[:size]] for row in written])
    logits = torch.randn(len(written), TIMES.stop, generator=torch.Generator().manual_seed(seed)) * 5
    theirs = WhisperTimeStampLogitsProcessor(GENERATION, begin_index=1)(tokens, logits.clone())
    ours = timestamps.Rules(GENERATION, 1)(tokens, logits.clone())
    assert torch.equal(ours, theirs)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 3 * 16_000), st.integers(0, 3), st.floats(0, 8))
def test_times_lie_within_the_clip_and_in_order(seed, samples, added, bold):
    """Tokens are drawn as the rules allow; what lies above the times is a word too."""
    draw = torch.Generator().manual_seed(seed)
    clip = Clip(0, "x", np.zeros(samples, np.float32))
    tape = longform._Tape(clip, torch.zeros(1, 80, 3000), [(0, longform.frame_count(clip))])
    while tape.spans:
        written = [END + 1]
        rules = timestamps.Rules(GENERATION, 1)
        while len(written) < 15 and written[-1] != END:
            logits = torch.randn(1, TIMES.stop + added, generator=draw) * 3
            logits[:, TIMES.start : TIMES.start + 200] += bold
            logits[:, END + 1 : TIMES.start] = -torch.inf
            logits = rules(torch.tensor([written]), logits)
            written.append(logits.softmax(dim=1).multinomial(1, generator=draw).item())
        tokens = [token for token in written[1:] if token != END]
        at, (segments, gone) = tape.spans[0][0], timestamps.cut(tokens, TIMES, min(3000, tape.left))
        assert 0 < gone <= 3000
        tape.add(Found(tokens, 0.0, 0.0), segments, gone)
        assert tape.spans == [(at + gone, longform.frame_count(clip))] * (at + gone < longform.frame_count(clip))
    spell = SimpleNamespace(decode=lambda row, **_: " ".join(map(str, row)))
    _, _, segments = tape.result(
        SimpleNamespace(processor=SimpleNamespace(tokenizer=spell), generation=GENERATION, language=None)
    )
    edges = [edge for start, end, _ in segments for edge in (start, end)]
    assert edges == sorted(edges)
    assert all(0 <= start < end <= clip.seconds and words for start, end, words in segments)


def test_text_before_a_window_is_told_unless_it_was_drawn_at_a_high_temperature():
    config = SimpleNamespace(max_target_positions=12)
    listener = SimpleNamespace(
        generation=GENERATION, task="transcribe", previous_text=True, model=SimpleNamespace(config=config)
    )
    tape = longform._Tape(Clip(0, "x", np.zeros(480_000)), torch.zeros(1, 80, 3000), [(0, 3000)])
    told = []
    for temperature in (0.0, 0.4, 0.6):
        tokens = [BEGIN, 1, 2, BEGIN + 10]
        tape.add(Found(tokens, 0.0, 0.0, temperature), [(0, 20, tokens)], 20)
        told.append(tape.prompt(listener))
    before, start = whisper.previous_token(GENERATION), END + 1
    assert before == BEGIN - 3
    assert told == [[before, *tokens, start], [before, BEGIN + 10, *tokens, start], [start]]


def test_added_words_are_no_times():
    word = TIMES.stop
    assert range(BEGIN, BEGIN + 1501) == TIMES  # 0 to 30 s in steps of 20 ms
    tokens = [BEGIN, 3, word, BEGIN + 10, BEGIN + 10, 4, word, BEGIN + 20]
    assert timestamps.cut(tokens, TIMES, 3000) == ([(0, 20, tokens[:4]), (20, 40, tokens[4:])], 3000)
    logits = torch.zeros(1, word + 1)
    logits[0, word] = 9.0
    after = lambda *written: timestamps.Rules(GENERATION, 1)(torch.tensor([[END + 1, *written]]), logits.clone())[0]  # noqa: E731
    assert after(BEGIN).argmax() == word
    assert after()[word] == after(BEGIN, 3, BEGIN + 10)[word] == -torch.inf
