import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, audio


def tone(seconds=0.5, rate=16_000, hertz=440.0, channels=1):
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return np.stack([wave] * channels, axis=1).astype(np.float32)


def encoded(wave, rate=16_000, container="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=container, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("container", "subtype", "rate", "channels"),
    [
        ("WAV", "PCM_U8", 8_000, 1),
        ("WAV", "PCM_24", 96_000, 2),
        ("WAV", "FLOAT", 44_100, 8),
        ("WAV", "ULAW", 8_000, 1),
        ("FLAC", "PCM_16", 22_050, 1),
        ("OGG", "VORBIS", 48_000, 2),
        ("MP3", None, 44_100, 1),
    ],
)
def test_every_format_becomes_mono_16_khz_float32(container, subtype, rate, channels):
    samples = audio.load(encoded(tone(rate=rate, channels=channels), rate, container, subtype))
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) == pytest.approx(8_000, rel=0.15 if container == "MP3" else 0.01)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * audio.SAMPLING_RATE / len(samples) == pytest.approx(440, abs=5)


def test_path_bytes_and_dataset_rows_are_the_same(tmp_path):
    path = tmp_path / "a clip with spaces é.wav"
    path.write_bytes(encoded(tone()))
    expected = audio.load(path)
    for source in (
        str(path),
        path.read_bytes(),
        {"path": str(path), "bytes": None},
        {"path": None, "bytes": path.read_bytes()},
    ):
        assert np.array_equal(audio.load(source), expected)
    assert np.array_equal(audio.load(expected), expected)
    assert audio.duration(path) == pytest.approx(0.5)


@settings(max_examples=25, deadline=None)
@given(st.integers(8_000, 96_000), st.integers(1, 20_000))
def test_length_follows_the_rate(rate, frames):
    generator = np.random.default_rng(frames)
    data = encoded(generator.uniform(-0.5, 0.5, frames).astype(np.float32), rate, subtype="FLOAT")
    wanted = frames * audio.SAMPLING_RATE / rate
    if wanted < 1:
        return
    assert abs(len(audio.load(data)) - wanted) <= 1


def recording(rows=6):
    clips = [{"id": f"c{number}", "audio": tone(0.5)[:, 0], "text": f"word{number}"} for number in range(rows)]
    return clips, audio.stitch(clips, seconds=5, pause=(0.2, 0.4), seed=1)


def test_stitch_knows_its_words_and_times():
    clips, long = recording()
    assert long.seconds <= 5
    assert long.text == " ".join(row["text"] for row in clips[: len(long.ids)])
    for (start, end, _), clip in zip(long.segments, clips, strict=False):
        piece = long.audio[round(start * 16_000) : round(end * 16_000)]
        assert np.array_equal(piece, clip["audio"])
    gaps = [after[0] - before[1] for before, after in zip(long.segments, long.segments[1:], strict=False)]
    assert all(0.2 - 1e-3 <= gap <= 0.4 + 1e-3 for gap in gaps)
    assert recording()[1].segments == long.segments


def test_stitch_without_a_clip_that_fits():
    with pytest.raises(AsrlibError, match="No clip fits"):
        audio.stitch([{"id": "a", "audio": tone(2)[:, 0], "text": "x"}], seconds=1)


def test_player_is_small():
    assert len(audio.play(tone(20)[:, 0]).data) < 30_000
