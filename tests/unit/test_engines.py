"""Every runtime hears the same real clips; what it cannot do is one sentence."""

import sys

import numpy as np
import pytest

from asrlib import AsrlibError, audio, checkpoints, corpora, engines, scoring, text

TINY = "openai/whisper-tiny.en"
EXACT = ("transformers", "openai-whisper", "whisper.cpp")  # float32, or the 16 bits that the weights were published in


@pytest.fixture(scope="module")
def speech():
    return corpora.load("telephone", "en", "test").select(range(0, 60, 12))


@pytest.fixture(scope="module")
def plain(speech):
    return list(engines.load("asrlib", TINY, precision="float32").transcribe(speech, language="en"))


@pytest.fixture
def unfetched(monkeypatch, tmp_path):
    """A checkpoint of which a runtime reads the configuration only."""
    (tmp_path / "config.json").write_text('{"vocab_size": 51864, "num_mel_bins": 80}')
    monkeypatch.setattr(checkpoints, "fetch", lambda *_, **__: tmp_path)


def difference(one, other):
    heard = [[item.text for item in side] for side in (one, other)]
    return scoring.score(*heard, normalizer=text.normalizer("en")).wer


@pytest.mark.weights
@pytest.mark.parametrize("name", [name for name in engines.ENGINES if name != "asrlib"])
def test_a_runtime_hears_what_ours_hears(name, speech, plain):
    engine = engines.load(name, TINY)
    heard = list(engine.transcribe(speech, language="en"))
    assert [item.id for item in heard] == speech["id"]
    assert {item.language for item in heard} == {"en"}
    assert difference(plain, heard) <= (0 if name in EXACT else 0.1)
    assert all(item.seconds_compute > 0 for item in heard)
    assert engine.bytes > 10_000_000


@pytest.mark.weights
@pytest.mark.parametrize(
    "name", ["transformers", "openai-whisper", "faster-whisper", "faster-whisper-batched", "whisper.cpp"]
)
def test_a_long_recording_is_heard_whole_with_times(name, speech):
    long = audio.stitch(speech.select([0, 1, 2, 3] * 4), seconds=40, seed=0)
    assert long.seconds > 30
    (heard,) = engines.load(name, TINY).transcribe([long.audio], language="en")
    starts = [start for start, _, _ in heard.segments]
    assert starts == sorted(starts)
    assert heard.segments[-1][1] > 25
    assert scoring.score([long.text], [heard.text], normalizer=text.normalizer("en")).wer < 0.5


@pytest.mark.weights
@pytest.mark.parametrize(
    "name", ["transformers", "openai-whisper", "faster-whisper", "ctranslate2", "whisper.cpp", "openvino"]
)
def test_a_runtime_finds_the_language(name):
    italian = corpora.load("telephone", "it", "test")
    longest = max(range(len(italian)), key=lambda row: italian[row]["seconds"])
    (heard,) = engines.load(name, "openai/whisper-base").transcribe([italian[longest]])
    assert heard.language == "it"


@pytest.mark.weights
def test_beams_are_followed(speech):
    for name in ("faster-whisper", "ctranslate2"):
        (heard,) = engines.load(name, TINY, beams=3).transcribe(speech.select([1]), language="en")
        assert heard.text


@pytest.mark.weights
def test_what_a_runtime_cannot_do_is_one_sentence(speech):
    engine = engines.load("ctranslate2", TINY)
    with pytest.raises(AsrlibError, match="one window of 30 s"):
        list(engine.transcribe([np.full(31 * 16_000, 0.1, np.float32)], language="en"))
    with pytest.raises(AsrlibError, match="one window of 30 s"):
        list(engine.transcribe(speech.select([0]), timestamps=True))
    with pytest.raises(AsrlibError, match="English-only model"):
        engine.transcribe(speech, language="it")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("telepathy", {}, "There is no engine 'telepathy'"),
        ("faster-whisper", {"precision": "int3"}, "no precision 'int3': choose one of int8, float32"),
        ("asrlib", {"beams": 2}, "decodes greedily"),
    ],
)
def test_a_wrong_choice_is_one_sentence(name, options, said):
    with pytest.raises(AsrlibError, match=said):
        engines.load(name, TINY, **options)


@pytest.mark.parametrize(("name", "package", "extra"), [
    ("whisper.cpp", "_pywhispercpp", "peers"), ("faster-whisper", "faster_whisper", "peers"), ("openvino", "openvino", "toolkits"),
])  # fmt: skip
def test_a_missing_package_is_named_by_its_extra(monkeypatch, unfetched, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(AsrlibError, match=rf"{name} is not installed: pip install 'asrlib\[{extra}\]'"):
        engines.load(name)
