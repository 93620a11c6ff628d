"""Where a sound file ends: what its container says, what it could not yet say, and what is not believed."""

import io
import struct
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile

from asrlib import AsrlibError, audio
from asrlib.io import containers, sound

WAVE = (0.3 * np.sin(np.arange(48_000) / 7)).astype(np.float32)


def written(form, codec, rate=16_000, *, piped=False, **options):
    """Return three seconds of sound as FFmpeg writes them to a file, or to a pipe, in which it cannot go back."""
    buffer = io.BytesIO()
    target = SimpleNamespace(write=buffer.write) if piped else buffer
    with av.open(target, "w", format=form, options=options) as container:
        track = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((WAVE[None] * 32767).astype(np.int16), "s16", "mono")
        frame.rate, frame.pts = 16_000, 0
        container.mux([packet for sent in (frame, None) for packet in track.encode(sent)])
    return buffer.getvalue()


def saved(form, subtype="PCM_16"):
    buffer = io.BytesIO()
    soundfile.write(buffer, WAVE, 16_000, format=form, subtype=subtype)
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize(
    ("form", "codec", "options"),
    [
        ("wav", "pcm_s16le", {}), ("wav", "pcm_s24le", {}), ("wav", "pcm_s16le", {"rf64": "always"}), ("aiff", "pcm_s16be", {}),
        ("au", "pcm_s16be", {}), ("caf", "pcm_s16be", {}), ("flac", "flac", {}), ("mp3", "libmp3lame", {}), ("ogg", "flac", {}),
        ("matroska", "aac", {}), ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov"}), ("avi", "mp2", {}), ("tta", "tta", {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("piped", [False, True])
def test_what_went_through_a_pipe_is_heard_to_its_end(form, codec, options, piped):
    data = written(form, codec, piped=piped, **options)
    samples = audio.load(data)
    assert len(samples) == pytest.approx(48_000, abs=1600)  # encoders fill a last frame
    assert audio.duration(data) == pytest.approx(len(samples) / 16_000, abs=1e-3)


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW", "PCM_U8", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("sizes", [(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000)])
def test_samples_behind_an_unfinished_header_are_not_taken_for_a_chunk(subtype, sizes):
    data = saved("WAV", subtype)
    place = data.find(b"data")
    data[4:8], data[place + 4 : place + 8] = (struct.pack("<I", size) for size in sizes)
    assert len(audio.load(bytes(data))) == 48_000


@pytest.mark.parametrize("padded", [False, True])
def test_a_chunk_behind_the_samples_is_not_heard(padded):
    """RIFF pads a chunk of an odd size, which not every program does; none of them has closed the header here."""
    data = saved("WAV", "PCM_U8")[:-1]
    place = data.find(b"data")
    data[4:8], data[place + 4 : place + 8] = bytes(4), struct.pack("<I", 47_999)
    chunk = b"\0" * padded + b"LIST" + struct.pack("<I", 4) + b"INFO" + bytes(40)
    assert len(audio.load(bytes(data + chunk))) == 47_999


@pytest.mark.parametrize("cut", [2, 400])
def test_a_table_of_contents_tells_where_an_mp3_ends(cut):
    data = written("mp3", "libmp3lame", write_id3v1="0")
    assert data[:3] == b"ID3" and data.count(b"Xing", 0, 300) + data.count(b"Info", 0, 300) == 1
    assert len(audio.load(data)) == pytest.approx(48_000, abs=10)
    assert len(audio.load(data + b"TAG" + bytes(125))) == pytest.approx(48_000, abs=10)
    with pytest.raises(AsrlibError, match="is truncated"):
        audio.load(data[:-cut])


@pytest.mark.parametrize("form", ["mp4", "caf", "w64"])
def test_boxes_lead_to_the_end_to_the_byte(form):
    data = written(form, "aac" if form == "mp4" else "pcm_s16le")
    assert len(audio.load(data)) == pytest.approx(48_000, abs=1600)
    with pytest.raises(AsrlibError, match="is truncated"):
        audio.load(data[:-2])


def test_mp4_boxes_of_64_bits_and_junk_behind_them():
    box = struct.pack(">I4sQ", 1, b"mdat", 24) + bytes(8)
    head = struct.pack(">I4s8x", 16, b"ftyp") + box
    for behind, size in ((b"", 40), (struct.pack(">I4s", 100, b"free"), 140), (b"\0\0\0\x09<-->" + bytes(9), None)):
        stream = io.BytesIO(head + behind)
        length = len(stream.getvalue())
        assert containers.announced_end(stream, head[:64], length) == (size or length)


def test_an_empty_chunk_and_one_without_a_length():
    desc, data = b"desc" + struct.pack(">q", 0), b"data" + struct.pack(">q", 50)
    for chunks, end in ((desc + data, 8 + 12 + 12 + 50), (b"data" + struct.pack(">q", -1), 20)):
        head = b"caff\0\1\0\0" + chunks
        assert containers.announced_end(io.BytesIO(head), head, len(head)) == end


def test_a_recording_begins_with_the_first_pages_of_its_streams():
    def page(flags, size=10):
        return b"OggS\0" + bytes([flags]) + bytes(20) + bytes([1, size]) + bytes(size)

    one = page(2) + page(2) + page(0) + page(1) + page(4)  # two streams; 1: goes on with a packet; 4: the last
    joined = one + b"junk" + one
    for data, links in ((one, [(0, len(one))]), (joined, [(0, len(one) + 4), (len(one) + 4, len(joined))])):
        found = list(containers.recordings(io.BytesIO(data), "x.oga"))
        assert [(part.start, part.start + part.size) for part in found] == links
    for lost in (1, 11, 12):
        with pytest.raises(AsrlibError, match="is truncated"):
            list(containers.recordings(io.BytesIO(one[:-lost]), "x.oga"))


def test_a_count_of_samples_that_is_not_reached_is_a_missing_end():
    data = written("tta", "tta")
    frame = len(data) - 4 - (len(data) - 22 - 4) // 3  # the last of three frames, about
    with pytest.raises(AsrlibError, match="is truncated"):
        audio.load(data[:frame])


def test_a_list_of_files_in_the_present_folder_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.ts").write_bytes(written("mpegts", "aac"))
    with pytest.raises(AsrlibError, match="is not audio that can be read"):
        audio.load(b"ffconcat version 1.0\nfile secret.ts\n")


def test_blocks_keep_every_sample_of_recordings_whose_form_changes():
    stereo = io.BytesIO()
    soundfile.write(stereo, np.stack([WAVE, WAVE], axis=1), 32_000, format="MP3")
    mono = io.BytesIO()
    soundfile.write(mono, WAVE, 16_000, format="MP3")
    blocks = list(sound.blocks(io.BytesIO(mono.getvalue() + stereo.getvalue()), "joined"))
    assert {(16_000, 1), (32_000, 2)} <= {(rate, block.shape[1]) for rate, block in blocks}
    seconds = sum(len(block) / rate for rate, block in blocks)
    assert seconds == pytest.approx(4.5, abs=0.15)
    assert all(block.dtype == np.float32 and block.size <= sound.BLOCK for _, block in blocks)
    assert len(blocks) < 10  # not one for each of the decoder's frames
