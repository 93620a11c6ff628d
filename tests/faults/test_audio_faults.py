"""Audio that cannot be used: one sentence that names the file, never a traceback from the decoder."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, audio

WAVE = (0.3 * np.sin(np.arange(16_000) / 7)).astype(np.float32)


def encoded(container):
    buffer = io.BytesIO()
    soundfile.write(buffer, WAVE, 16_000, format=container)
    return buffer.getvalue()


@pytest.mark.parametrize("container", ["WAV", "OGG", "FLAC"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1])
def test_truncated(tmp_path, container, kept):
    data = encoded(container)
    path = tmp_path / f"cut.{container.lower()}"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(AsrlibError, match=path.name):
        audio.load(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"this is a text file, whatever its name says", "not audio that can be read"),
        (b"<html><body>404</body></html>", "not audio that can be read"),
    ],
)
def test_not_audio(tmp_path, content, said):
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    with pytest.raises(AsrlibError, match=f"clip.wav .*{said}"):
        audio.load(path)
    with pytest.raises(AsrlibError, match=f"clip.wav .*{said}"):
        audio.duration(path)


def test_missing_and_folder(tmp_path):
    with pytest.raises(AsrlibError, match=r"nowhere\.wav does not exist"):
        audio.load(tmp_path / "nowhere.wav")
    with pytest.raises(AsrlibError, match="is a folder"):
        audio.load(tmp_path)


def test_wrong_extension_is_read_by_content(tmp_path):
    path = tmp_path / "really_flac.wav"
    path.write_bytes(encoded("FLAC"))
    assert len(audio.load(path)) == 16_000


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (np.zeros(16_000, np.float32), "silent"),
        (np.array([], np.float32), "no sample"),
        (np.array([0.1, np.nan, 0.2], np.float32), "not numbers"),
        (np.array([0.1, np.inf], np.float32), "not numbers"),
    ],
)
def test_useless_samples(tmp_path, samples, said):
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    with pytest.raises(AsrlibError, match=f"clip.wav .*{said}"):
        audio.load(path)


def test_clipped_audio_is_audio(tmp_path):
    path = tmp_path / "clipped.wav"
    soundfile.write(path, np.clip(WAVE * 50, -1, 1), 16_000)
    assert np.abs(audio.load(path)).max() == pytest.approx(1, abs=1e-3)


def test_too_long_is_refused_before_decoding(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(16_000 * 60, np.int16), 16_000)
    with pytest.raises(AsrlibError, match=r"long.wav lasts 60 s, more than the 30 s"):
        audio.load(path, max_seconds=30)


def test_two_channels_as_an_array():
    with pytest.raises(AsrlibError, match=r"shape \(2, 100\)"):
        audio.load(np.zeros((2, 100), np.float32))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["WAV", "OGG", "FLAC"]), st.data())
def test_damaged_bytes_are_read_or_refused_in_one_sentence(container, data):
    damaged = bytearray(encoded(container))
    for place in data.draw(st.lists(st.integers(0, min(400, len(damaged) - 1)), min_size=1, max_size=6)):
        damaged[place] = data.draw(st.integers(0, 255))
    try:
        samples = audio.load(bytes(damaged))
    except AsrlibError as error:
        assert "\n" not in str(error)
    else:
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
