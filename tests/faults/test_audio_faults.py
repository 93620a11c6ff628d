"""Audio that cannot be used: one sentence that names the file, never a traceback from the decoder."""

import functools
import io
import os
import struct
import subprocess
import sys
import threading
import tracemalloc

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, audio
from asrlib.io import sound
from asrlib.tasks import transcripts

WAVE = (0.3 * np.sin(np.arange(16_000) / 7)).astype(np.float32)


def encoded(container, rate=16_000):
    buffer = io.BytesIO()
    soundfile.write(buffer, WAVE, rate, format=container)
    return buffer.getvalue()


@functools.cache
def muxed(form, codec, rate=16_000, picture=False, layout="mono", **options):
    """Return a second of sound in a container of FFmpeg's."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form, options=options) as container:
        track = container.add_stream(codec, rate=rate, layout=layout) if codec else None
        if picture:
            film = container.add_stream("mpeg4", rate=10, width=64, height=64, pix_fmt="yuv420p")
            frames = [av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8)) for _ in range(10)]
            container.mux([packet for frame in (*frames, None) for packet in film.encode(frame)])
        frame = av.AudioFrame.from_ndarray((WAVE[None] * 32767).astype(np.int16), "s16", "mono")
        frame.rate, frame.pts = 16_000, 0
        if track:
            container.mux([packet for sent in (frame, None) for packet in track.encode(sent)])
    return buffer.getvalue()


SIZED = {
    "mp4": ("mp4", "aac"), "m4a": ("ipod", "aac"), "mov": ("mov", "alac"), "3gp": ("3gp", "aac"), "webm": ("webm", "libopus", 48_000),
    "mka": ("matroska", "aac"), "avi": ("avi", "mp2"), "film": ("mp4", "aac", 16_000, True), "mp3": ("mp3", "libmp3lame"),
    "opus": ("ogg", "libopus", 48_000), "caf": ("caf", "pcm_s16le"), "w64": ("w64", "pcm_s16le"), "au": ("au", "pcm_s16be"),
    "tta": ("tta", "tta"), "wma": ("asf", "mp2"), "7.1": ("mp4", "aac", 16_000, False, "7.1"),
}  # fmt: skip
UNSIZED = {
    "aac": ("adts", "aac"), "mp2": ("mp2", "mp2"), "ts": ("mpegts", "aac"), "flv": ("flv", "aac"),
    "amr": ("amr", "libopencore_amrnb", 8000), "wv": ("wv", "wavpack"),
}  # fmt: skip


@pytest.mark.parametrize("made", [*SIZED.values(), *UNSIZED.values()], ids=[*SIZED, *UNSIZED])
def test_every_container_that_people_have_is_heard(made):
    data = muxed(*made)
    samples = audio.load(data)
    assert len(samples) == pytest.approx(16_000, abs=1600)  # encoders fill a last frame
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * 16_000 / len(samples) == pytest.approx(16_000 / 7 / 2 / np.pi, abs=5)
    assert audio.duration(data) == pytest.approx(len(samples) / 16_000, abs=1e-3)


@pytest.mark.parametrize("kept", [0.95, 0.5, 0.1])
@pytest.mark.parametrize("name", ["WAV", "OGG", "FLAC", "AIFF", "RF64", *SIZED])
def test_truncated(tmp_path, name, kept):
    data = muxed(*SIZED[name]) if name in SIZED else encoded(name)
    path = tmp_path / f"cut.{name.lower()}"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(AsrlibError, match=path.name):
        audio.load(path)


@pytest.mark.parametrize(
    "kind", ["OGG", "MP3", "FLAC", "WAV", "AIFF", "AU", "CAF", "W64", "opus", "m4a", "mka", "wma", "aac", "webm", "vbr"]
)
def test_recordings_that_were_joined_are_heard_to_the_last(kind):
    pieces = {
        **{name: [muxed(*(SIZED | UNSIZED)[name])] * 3 for name in ("opus", "m4a", "mka", "wma", "aac", "webm")},
        "vbr": [muxed("mp3", "libmp3lame", write_xing="0")] * 2,  # no length anywhere
    }.get(kind) or [encoded(kind), encoded(kind, 22_050)]
    apart = sum(map(audio.duration, pieces))
    data = b"".join(pieces)
    assert len(audio.load(data)) / 16_000 == pytest.approx(apart, abs=0.15)  # between MP3s an encoder's delay is heard
    assert audio.duration(data) == pytest.approx(apart, abs=0.15)


@pytest.mark.parametrize(
    ("riff", "size"),
    [
        (0x7FFFF024, 0x7FFFF000),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0),
        (0, 0),
        (36, 0),
        (0, 100),
        (0, 1 << 31),
    ],
)
def test_a_header_that_was_written_before_the_length_was_known(riff, size):
    data = bytearray(encoded("WAV"))
    data[4:8], data[40:44] = struct.pack("<I", riff), struct.pack("<I", size)
    assert audio.load(bytes(data)) == pytest.approx(WAVE, abs=1e-4)
    assert audio.duration(bytes(data)) == pytest.approx(1)


def test_a_piped_flac_does_not_know_its_length():
    data = bytearray(encoded("FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    assert audio.load(bytes(data)) == pytest.approx(WAVE, abs=1e-4)


def test_a_pipe_is_heard(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(encoded("WAV"),))
    writer.start()
    assert len(audio.load(tmp_path / "pipe")) == 16_000
    writer.join()


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_command_may_read_its_standard_input_twice(name):
    code = (
        "import sys\nfrom pathlib import Path\nfrom asrlib import audio\nfrom asrlib.tasks import transcripts\n"
        "(path,) = transcripts.audio_files([Path(sys.argv[1])])\nprint(path.stem, *(len(audio.load(path)) for _ in range(2)))"
    )
    command = [sys.executable, "-c", code, name]
    done = subprocess.run(command, input=encoded("FLAC"), capture_output=True, check=True)
    assert done.stdout.split() == [b"stdin", b"16000", b"16000"]


@pytest.mark.parametrize("share", [1, 0.98])
def test_of_channels_that_cancel_each_other_the_loudest_is_taken(tmp_path, share):
    soundfile.write(tmp_path / "x.wav", np.stack([share * WAVE, -WAVE], axis=1), 16_000, subtype="FLOAT")
    assert np.array_equal(abs(audio.load(tmp_path / "x.wav")), abs(WAVE))


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n"]
)
def test_a_playlist_reads_no_other_file(tmp_path, text):
    (tmp_path / "secret.ts").write_bytes(muxed(*UNSIZED["ts"]))
    (tmp_path / "list.m3u8").write_text(text.format(tmp_path / "secret.ts"))
    with pytest.raises(AsrlibError, match=r"list\.m3u8 is not audio"):
        audio.load(tmp_path / "list.m3u8")


def test_a_film_without_sound_is_named():
    with pytest.raises(AsrlibError, match="holds no sound"):
        audio.load(muxed("mp4", None, picture=True))


def test_a_folder_names_what_it_leaves_out(tmp_path, capsys):
    for name in ("b.M4A", "sub/a.opus", "notes.txt", "noending", ".hidden.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert transcripts.audio_files([tmp_path]) == [tmp_path / "b.M4A", tmp_path / "sub" / "a.opus"]
    hidden, text, none = capsys.readouterr().err.splitlines()
    assert hidden == f"asrlib: {tmp_path / '.hidden.wav'} is left out: a hidden file."
    assert "noending is left out: its name has no ending" in text and "notes.txt is left out: .txt is no ending" in none


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
    for name, said in (
        ("nowhere.wav", r"nowhere\.wav does not exist"),
        (".", "is a folder"),
        ("a\0", "does not exist"),
    ):
        with pytest.raises(AsrlibError, match=said):
            audio.load(tmp_path / name)


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
    assert peak < samples.nbytes + 6 * 4 * sound.BLOCK + samples.nbytes // 8
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


@settings(max_examples=150)
@given(st.sampled_from(["WAV", "OGG", "FLAC", *SIZED]), st.data())
def test_damaged_bytes_are_read_or_refused_in_one_sentence(container, data):
    damaged = bytearray(muxed(*SIZED[container]) if container in SIZED else encoded(container))
    for place in data.draw(st.lists(st.integers(0, min(400, len(damaged) - 1)), min_size=1, max_size=6)):
        damaged[place] = data.draw(st.integers(0, 255))
    _read_or_refused(bytes(damaged))


@settings(max_examples=150)
@given(st.sampled_from(["WAV", "AIFF", "AU", "CAF", "W64", "mp4", "mka", "wma", "avi"]), st.data())
def test_headers_with_any_sizes_are_read_or_refused_in_one_sentence(container, data):
    damaged = bytearray(muxed(*SIZED[container]) if container in SIZED else encoded(container))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 60))
        size = data.draw(st.sampled_from([0, 1, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]) | st.integers(0, 0xFFFFFFFF))
        damaged[place : place + 4] = size.to_bytes(4, data.draw(st.sampled_from(["little", "big"])))
    _read_or_refused(bytes(damaged))


def _read_or_refused(data):
    try:
        samples = audio.load(data, max_seconds=600)
    except AsrlibError as error:
        assert "\n" not in str(error)
    else:
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
