"""Audio that cannot be used: one sentence that names the file, never a traceback from the decoder."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, audio
from asrlib.io import sound

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


@pytest.mark.parametrize(
    ("container", "subtype", "off"),
    [
        ("WAV", "PCM_U8", 1 / 128),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "DOUBLE", 1e-7),
        ("WAV", "ULAW", 0.02),
        ("WAVEX", "PCM_24", 1e-6),
        ("FLAC", "PCM_S8", 1 / 128),
        ("AIFF", "PCM_24", 1e-6),
    ],
)
def test_every_width_of_sample_is_heard_alike(tmp_path, container, subtype, off):
    path = tmp_path / "clip.wav"
    soundfile.write(path, WAVE, 16_000, format=container, subtype=subtype)
    assert audio.load(path) == pytest.approx(WAVE, abs=off)


@pytest.mark.parametrize("rate", [96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 8, 32])
def test_high_rates_and_many_channels_become_one_channel_at_16_khz(tmp_path, rate, channels):
    import soxr

    sound = 0.1 * np.random.default_rng(channels).standard_normal((rate // 2, channels)).astype(np.float32)
    path = tmp_path / "studio.wav"
    soundfile.write(path, sound, rate, subtype="FLOAT")
    assert np.array_equal(audio.load(path), soxr.resample(sound.mean(axis=1), rate, 16_000))
    assert audio.duration(path) == pytest.approx(0.5)


def test_blocks_do_not_change_a_sample(tmp_path, monkeypatch):
    path = tmp_path / "clip.ogg"
    soundfile.write(path, np.stack([WAVE, -0.5 * WAVE], axis=1), 44_100, format="OGG")
    whole = audio.load(path)
    monkeypatch.setattr(sound, "BLOCK", 1000)
    assert np.array_equal(audio.load(path), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hours", "rate", "channels", "bits"), [(3, 16_000, 1, 16), (0.25, 48_000, 2, 8), (0.25, 96_000, 8, 16)]
)
def test_three_hours_need_little_more_memory_than_their_samples(tmp_path, hours, rate, channels, bits):
    """The file is sparse: nothing, which takes no room on the disk, then a second of noise."""
    seconds, frame = int(hours * 3600), channels * bits // 8
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * frame, frame, bits)
    size = seconds * rate * frame
    path = tmp_path / "lecture.wav"
    with open(path, "wb") as stream:
        stream.write(b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<I", 16) + head)
        stream.write(b"data" + struct.pack("<I", size))
        stream.seek(size - rate * frame, 1)
        stream.write(np.random.default_rng(0).bytes(rate * frame))
    tracemalloc.start()
    try:
        samples = audio.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(samples) == seconds * 16_000
    assert peak < samples.nbytes + 6 * 4 * sound.BLOCK
    with pytest.raises(AsrlibError, match=r"lecture\.wav lasts .* s, more than the 600 s allowed"):
        audio.load(path, max_seconds=600)


@pytest.mark.parametrize(
    ("frames", "said"), [(1 << 32, "lasts 268,435 s"), (6 * 3600 * 16_000, "is not audio that can be read")]
)
def test_a_length_that_is_a_lie_is_refused(frames, said):
    """A FLAC of one second that says it lasts three days, or six hours."""
    data = bytearray(encoded("FLAC"))
    data[21:26] = ((data[21] & 0xF0) << 32 | frames).to_bytes(5, "big")  # the low 36 bits of STREAMINFO's numbers
    with pytest.raises(AsrlibError, match=said):
        audio.load(bytes(data))


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
