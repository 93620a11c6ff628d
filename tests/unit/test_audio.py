import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, audio


def tone(seconds=0.5):
    return (0.3 * np.sin(np.arange(int(seconds * 16_000)) / 6)).astype(np.float32)


def encoded(wave, rate=16_000):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


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


@pytest.mark.parametrize("array", [np.ones(9, np.int16), np.ones(9, np.complex64), np.array(["a"])])
def test_an_array_that_holds_no_floats_is_refused(array):
    with pytest.raises(AsrlibError, match=f"The audio array holds {array.dtype}: give floats"):
        audio.load(array)


@settings(max_examples=25)
@given(st.integers(8_000, 96_000), st.integers(20, 20_000))
def test_length_follows_the_rate(rate, frames):
    data = encoded(np.random.default_rng(frames).uniform(-0.5, 0.5, frames).astype(np.float32), rate)
    assert abs(len(audio.load(data)) - frames * audio.SAMPLING_RATE / rate) <= 1


def recording(rows=6):
    clips = [{"id": f"c{number}", "audio": tone(), "text": f"word{number}"} for number in range(rows)]
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
        audio.stitch([{"id": "a", "audio": tone(2), "text": "x"}], seconds=1)


def test_player_is_small():
    assert len(audio.play(tone(20)).data) < 30_000


@settings(max_examples=25)
@given(st.lists(st.floats(0.2, 4.0), max_size=12))
def test_windows_hold_all_short_clips_once_and_in_order(lengths):
    rows = [{"id": f"c{at}", "audio": tone(one), "text": "", "seconds": one} for at, one in enumerate(lengths)]
    made = audio.windows(rows, seconds=5)
    assert [name for one in made for name in one.ids] == [row["id"] for row in rows if row["seconds"] <= 3]
    assert all(one.seconds <= 5 for one in made)
