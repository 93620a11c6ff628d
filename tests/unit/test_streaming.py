"""Live transcription: what local agreement lets out and when, and sound from a pipe."""

import io
import os
import signal
import sys
import threading
import wave
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from asrlib import AsrlibError, audio, cli, corpora, scoring, text
from asrlib.decoding import streaming, transcription
from asrlib.io import pipes

RATE = audio.SAMPLING_RATE
WORD = RATE // 2  # samples of a word of the made-up speech below


class Counter:
    """A recogniser of made-up speech, in which the n-th word is half a second of the number n. It knows whole words, and takes the
    part of a word at the end for another one each time."""

    def __init__(self, fooled=True, rate=RATE):
        self.calls, self.longest, self.fooled, self.rate, self.word = 0, 0, fooled, rate, rate // 2

    def __call__(self, samples, confirmed):
        self.calls += 1
        self.longest = max(self.longest, len(samples))
        whole, part = divmod(len(samples) - self._offset(samples), self.word)
        heard = [(int(number),) for number in samples[self._offset(samples) :: self.word][:whole]]
        wrong = [(-self.calls,)] if part and self.fooled else []
        return [word for word in heard if word not in confirmed] + wrong

    def _offset(self, samples):
        """Return where the first whole word begins."""
        first = np.flatnonzero(np.diff(samples[: self.word], append=samples[self.word : self.word + 1]))
        return int(first[0]) + 1 if len(first) and first[0] + 1 < self.word else 0

    def text(self, spoken):
        return "".join(f" {number}{'.' if number % 7 == 0 else ''}" for (number,) in spoken)

    def end(self, samples, first, rest):
        return float(np.flatnonzero(samples == first[-1][0])[-1] + 1) / self.rate


def speech(words, word=WORD):
    return np.repeat(np.arange(1, words + 1), word).astype(np.float32)


def said(words):
    return Counter().text([(number,) for number in range(1, words + 1)])


COARSE = 400  # samples a second: the policy is the same at any rate, and the test forty times as quick


@mock.patch.object(audio, "SAMPLING_RATE", COARSE)
@given(st.lists(st.integers(1, 5 * COARSE), min_size=1, max_size=25))
def test_each_word_goes_out_once_in_its_order_whatever_the_pieces(sizes):
    recogniser, at, out = Counter(rate=COARSE), 0, ""
    word, live = recogniser.word, streaming.Live(recogniser)
    sound = speech(sum(sizes) // word + 1, word)
    for size in sizes:
        before = at
        at += size
        out += live.add(sound[before:at])
        assert said(len(sound)).startswith(out)  # nothing that goes out is ever wrong
        assert len(out.split()) <= at // word  # nor was it said later
    whole = -(-at // word) * word
    out += live.add(sound[at:whole]) + live.end()
    assert out == said(whole // word)
    assert recogniser.longest <= (20 + 5 + 5) * COARSE


def test_a_word_is_confirmed_when_two_transcripts_agree_on_it_and_on_all_before_it():
    class Told:
        def __init__(self, *transcripts):
            self.transcripts = iter(transcripts)

        def __call__(self, samples, confirmed):
            return list(next(self.transcripts)[len(confirmed) :])

        def text(self, words):
            return "".join(words)

    live = streaming.Live(Told("ab", "abX", "aYbc", "abZcd", "abZcd"))
    piece = np.zeros(RATE, np.float32)
    assert [live.add(piece) for _ in range(5)] == ["", "ab", "", "", "Zcd"]
    assert live.end() == ""
    live = streaming.Live(Told("ab"))
    assert live.add(piece) + live.end() == "ab"  # what is not confirmed goes out at the end


@given(st.text("ab", max_size=8), st.text("ab", max_size=8))
def test_agreement_is_the_longest_common_beginning(first, second):
    same = "".join(streaming.agreed(first, second))
    assert first.startswith(same) and second.startswith(same)
    longer = len(same) + 1
    assert first[:longer] != second[:longer] or len(same) == len(first) == len(second)


def test_who_falls_behind_loses_no_word():
    live = streaming.Live(recogniser := Counter(fooled=False))
    out = live.add(speech(4)) + live.add(speech(190)[4 * WORD :]) + live.end()  # 93 seconds at once
    assert out == said(190)
    assert recogniser.longest <= 30 * RATE


def test_speech_without_agreement_goes_out_before_it_is_forgotten():
    live = streaming.Live(Fickle())
    out = "".join(live.add(np.ones(RATE, np.float32)) for _ in range(45)) + live.end()
    assert out.count("guess") == 3  # one for each time that the sound was full, and the last


class Fickle:
    def __init__(self):
        self.calls = 0

    def __call__(self, samples, confirmed):
        self.calls += 1
        return [(self.calls,)]

    def text(self, words):
        return "".join(" guess" for _ in words)


def test_silence_is_forgotten_and_does_not_grow():
    class Deaf(Counter):
        def __call__(self, samples, confirmed):
            self.longest = max(self.longest, len(samples))
            return []

    live = streaming.Live(deaf := Deaf())
    for _ in range(100):
        assert live.add(np.zeros(RATE, np.float32)) == ""
    assert deaf.longest <= 22 * RATE


def test_a_recording_is_fed_at_the_pace_of_its_sound():
    emissions = list(streaming.spoken(streaming.Live(Counter()), speech(30), step=1.0))
    assert "".join(one.text for one in emissions) == said(30)
    written, times = 0, [one.at for one in emissions]
    assert times == sorted(times)
    for one in emissions:
        written += len(one.text.split())
        assert one.at >= written * WORD / RATE  # not before it was said


# ---------------------------------------------------------------------------------------------------------------- a model
@pytest.fixture(scope="module")
def tiny():
    return transcription.load("openai/whisper-tiny.en", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def talk():
    rows = corpora.load("telephone", "en", "test").filter(
        lambda row: 2 < row["seconds"] < 6, load_from_cache_file=False
    )
    return audio.stitch(rows, seconds=32, seed=0)


@pytest.mark.weights
def test_a_model_says_live_what_it_says_of_the_whole_recording(tiny, talk):
    recogniser = streaming.Recogniser(*tiny, window="merged")
    live, pieces = streaming.Live(recogniser, longest=12), np.array_split(talk.audio, 8)
    out = [live.add(piece) for piece in pieces]
    assert len(live.sound) < len(talk.audio)  # the beginning was dropped
    out.append(live.end())
    assert sum(map(bool, out)) >= 4  # not all at the end
    normalize = text.normalizer("en")
    (whole,) = transcription.transcribe(*tiny, [talk.audio])
    found = scoring.score([talk.text] * 2, ["".join(out), whole.text], normalizer=normalize)
    assert found.errors[0] <= found.errors[1] + 0.15 * found.lengths[1]


@pytest.mark.parametrize("parts", [{"proj_out": None, "positions": 500}, {"positions": 1500}])
def test_models_that_cannot_go_on_after_the_first_window_are_refused_before_it(parts):
    model = SimpleNamespace(config=SimpleNamespace(max_source_positions=parts.pop("positions")), **parts)
    with pytest.raises(AsrlibError, match="neither one that was exported to ONNX nor one whose context was cut"):
        streaming.Recogniser(model, None)


@pytest.mark.weights
def test_the_command_prints_words_as_they_are_final(talk, monkeypatch, capsys):
    read, written = os.pipe()
    content = io.BytesIO()
    soundfile.write(content, talk.audio[: 6 * RATE], RATE, format="WAV", subtype="PCM_16")

    def record():
        with os.fdopen(written, "wb") as pipe:
            pipe.write(content.getvalue())

    threading.Thread(target=record, daemon=True).start()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(os.fdopen(read, "rb")))
    assert cli.main(["transcribe", "-", "--live", "--model", "openai/whisper-tiny.en"]) == 0
    first, normalize = talk.segments[0][2], text.normalizer("en")
    assert normalize(capsys.readouterr().out).startswith(normalize(first)[:12])


class Piped(Counter):
    """The same for sound that comes as 16-bit samples."""

    def __call__(self, samples, confirmed):
        return super().__call__(np.round(32768 * samples), confirmed)

    def end(self, samples, first, rest):
        return super().end(np.round(32768 * samples), first, rest)


def test_ctrl_c_ends_the_recorder_and_what_it_has_brought_is_heard(monkeypatch, capsys):
    (read, written), before = os.pipe(), signal.getsignal(signal.SIGINT)

    def record():
        while signal.getsignal(signal.SIGINT) is before:
            pass
        with os.fdopen(written, "wb") as pipe:
            pipe.write(speech(8).astype("<i2").tobytes())
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(transcription, "load", lambda *_, **__: (None, None))
    monkeypatch.setattr(streaming, "Recogniser", lambda *_: Piped(fooled=False))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(os.fdopen(read, "rb")))
    threading.Thread(target=record, daemon=True).start()
    assert cli.main(["transcribe", "-", "--live"]) == 0
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().out == f"{said(8).lstrip()}\n"


def test_live_goes_with_the_standard_input_alone(tmp_path, capsys):
    for wrong in (["x.wav"], ["-", "--format", "srt"], ["-", "--output", str(tmp_path)], ["-", "x.wav"]):
        with pytest.raises(SystemExit):
            cli.main(["transcribe", *wrong, "--live"])
        assert "--live goes with the standard input alone" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------- a pipe
def piped(content):
    return io.BufferedReader(io.BytesIO(content))


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff", b"\0\0\0\0"])  # as recorders write it before they know it
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1)])
def test_a_wav_becomes_mono_at_16_khz(rate, channels, length):
    tone = 0.3 * np.sin(np.arange(2 * rate) * 2 * np.pi * 200 / rate)
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes((np.repeat(tone[:, None], channels, axis=1) * 32767).astype("<i2").tobytes())
    head = content.getvalue().replace(b"data" + content.getvalue()[40:44], b"data" + length)
    found = np.concatenate(list(pipes.samples(piped(head))))
    expected = audio.load(content.getvalue())
    assert len(found) == len(expected) and np.abs(found - expected).max() < 1e-3


def test_bare_samples_are_heard_and_other_forms_refused():
    heard = (1000 * np.sin(np.arange(RATE) / 20)).astype("<i2")
    found = np.concatenate(
        list(pipes.samples(piped(heard.tobytes() + b"\x01")))
    )  # a recorder that was stopped within a sample
    assert found == pytest.approx(heard / 32768)
    flac = io.BytesIO()
    soundfile.write(flac, heard, RATE, format="FLAC")
    wide = io.BytesIO()
    soundfile.write(wide, heard, RATE, format="WAV", subtype="PCM_24")
    for content, said in ((b"", "Nothing came"), (flac.getvalue(), "compressed"), (wide.getvalue(), "24 bits"),
                          (b"RIFF" + bytes(40), "cannot be read")):  # fmt: skip
        with pytest.raises(AsrlibError, match=said):
            list(pipes.samples(piped(content)))


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 100))
def test_what_was_read_ahead_comes_in_order_and_never_too_little_but_the_last(sizes, least):
    everything = np.arange(sum(sizes))
    found = list(pipes.ahead(np.split(everything, np.cumsum(sizes)[:-1]) if sizes else [], least))
    assert np.concatenate([*found, []]).tolist() == everything.tolist()
    assert all(len(part) >= least for part in found[:-1])


def test_an_error_in_the_pipe_comes_out():
    def broken():
        yield np.zeros(5)
        raise AsrlibError("the pipe burst")

    with pytest.raises(AsrlibError, match="burst"):
        list(pipes.ahead(broken(), 3))
