"""Samples out of any file of sound: libsndfile where its answer is right, FFmpeg (PyAV) for all others.

libsndfile believes a header, and so loses sound: it stops where an MP3's estimated length ends, and finds nothing behind a
header that was written before the length was known. FFmpeg decodes such files, and those that libsndfile does not know (MP4,
WebM, AAC, AMR, WMA, video), to their real end. A container that says where it should end, and does not reach it, is refused.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from asrlib import AsrlibError

if TYPE_CHECKING:
    import soundfile

__all__ = ["BLOCK", "SUFFIXES", "blocks", "header_seconds", "opened"]

BLOCK = 1 << 20  # samples decoded at a time, all channels together: 4 MB
STREAMED = 0x7F00_0000  # a 32-bit size of at least this, beyond the file's end, was written before the length was known
EXACT = ("ape", "tak", "tta", "wv")  # forms whose header counts the samples and not the bytes
# Names under which sound and video with sound are kept; what a file holds is found from its first bytes.
ENDINGS = (
    "3g2 3gp aac ac3 aif aifc aiff amr ape asf au avi awb caf dts eac3 flac flv gsm m2ts m4a m4b m4v mka mkv mov mp2 mp3 mp4 mpeg "
    "mpg mts nist oga ogg ogv opus qt ra rf64 rm snd sph spx ts tta voc w64 wav wave webm wma wmv wv"
)
SUFFIXES = frozenset(f".{ending}" for ending in ENDINGS.split())

Block = tuple[int, np.ndarray]  # sampling rate in Hz; float32 of shape (frames, channels)


@contextlib.contextmanager
def opened(source: Any) -> Iterator[tuple[BinaryIO, str]]:
    """Open a path, encoded bytes or a mapping with ``path`` and ``bytes``; yield a stream that can seek, and a name for messages."""
    data = source if isinstance(source, bytes) else None
    if isinstance(source, Mapping):
        data, source = source.get("bytes"), source.get("path")
    elif data is not None:
        source = None
    name = str(source or "audio bytes")
    if data is not None:
        yield io.BytesIO(data), name
        return
    try:
        with open(source, "rb") as stream:
            yield (stream if stream.seekable() else io.BytesIO(stream.read())), name  # a pipe
    except (OSError, TypeError, ValueError) as error:
        raise _unopened(name, error) from None


def _unopened(name: str, error: Exception) -> AsrlibError:
    with contextlib.suppress(OSError, ValueError):
        if Path(name).is_dir():
            return AsrlibError(f"{name} is a folder, not an audio file.")
        if Path(name).exists():
            return AsrlibError(f"{name} cannot be read ({getattr(error, 'strerror', None) or error}): check the file.")
    return AsrlibError(f"{name} does not exist: check the path.")


def _unreadable(name: str, stream: BinaryIO, reason: object) -> AsrlibError:
    if stream.seek(0, os.SEEK_END) == 0:
        return AsrlibError(f"{name} is empty (0 bytes): fetch or record it again.")
    reason = str(getattr(reason, "error_string", None) or getattr(reason, "strerror", None) or reason).rstrip(". ")
    return AsrlibError(f"{name} is not audio that can be read ({reason}): convert it to WAV, FLAC, Ogg or MP3.")


def _truncated(name: str) -> AsrlibError:
    return AsrlibError(f"{name} is truncated: its end is missing, so fetch or record it again.")


def blocks(stream: BinaryIO, name: str) -> Iterator[Block]:
    """Yield the samples of a file from its first to its last, at most `BLOCK` at a time.

    The rate and the number of channels may change from block to block: recordings that were joined differ.

    Raises:
        AsrlibError: no sound in it, a form that neither library reads, or a missing end.
    """
    import soundfile

    parts = _by_libsndfile(stream, name)
    if not parts:
        yield from _by_ffmpeg(stream, name)
    for part in parts:
        with part:
            left = part.frames
            while left > 0:
                try:
                    block = part.read(max(1, BLOCK // part.channels), dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    raise _unreadable(name, stream, error) from None
                if not len(block):
                    raise _truncated(name)
                left -= len(block)
                yield part.samplerate, block


def header_seconds(stream: BinaryIO, name: str) -> float | None:
    """Return the length of a file whose header knows it, in seconds; None where only decoding can tell."""
    seconds = 0.0
    for part in (parts := _by_libsndfile(stream, name)):
        with part:
            seconds += part.frames / part.samplerate
    return seconds if parts else None


def _by_libsndfile(stream: BinaryIO, name: str) -> list[soundfile.SoundFile]:
    """Return a file of libsndfile for each recording in ``stream``; none where FFmpeg is to read it."""
    import soundfile

    size = stream.seek(0, os.SEEK_END)
    head = _at(stream, 0, 64)
    if _end(stream, head, size) > size + 1:  # a RIFF of an odd size may lack its last byte
        raise _truncated(name)
    if _length_unknown(stream, head, size):
        return []
    pieces: list[BinaryIO] = [stream]
    if head.startswith(b"OggS") and len(links := _ogg_links(stream, name, size)) > 1:
        pieces = [io.BytesIO(_at(stream, start, stop - start)) for start, stop in links]
    parts = []
    try:
        for piece in pieces:
            piece.seek(0)
            parts.append(soundfile.SoundFile(_Guarded(piece)))
    except (soundfile.LibsndfileError, OSError):
        return []
    return [] if parts[0].subtype.startswith("MPEG") else parts


class _Guarded:
    """A stream in which a damaged header leads to no place before the start."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.read, self.tell = stream, stream.read, stream.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self.tell(), self.stream.seek(0, os.SEEK_END) if whence == os.SEEK_END else 0)[whence]
        return self.stream.seek(max(0, start + offset))


def _at(stream: BinaryIO, place: int, count: int) -> bytes:
    stream.seek(place)
    return stream.read(count)


# --- What a container says of its own size ----------------------------------------------------------------------------


def _end(stream: BinaryIO, head: bytes, size: int) -> int:
    """Return the byte after the last one that the container announces; ``size``, the file's, where it announces none."""
    magic, little = head[:4], lambda start, stop: int.from_bytes(head[start:stop], "little")
    if magic in (b"RIFF", b"RIFX", b"FORM"):
        declared = int.from_bytes(head[4:8], "little" if magic == b"RIFF" else "big")
        return size if declared >= STREAMED else 8 + declared
    if magic == b".snd":
        declared = int.from_bytes(head[8:12], "big")
        return size if declared >= STREAMED else int.from_bytes(head[4:8], "big") + declared
    if magic in (b"RF64", b"BW64"):
        return size if little(20, 28) >> 62 else 8 + little(20, 28)
    if magic == b"riff":  # W64
        return size if little(16, 24) >> 62 else little(16, 24)
    if magic == b"caff":
        return _walk(stream, 8, size, _caf_chunk)
    if magic == b"0&\xb2u":  # ASF
        return _walk(stream, 0, size, lambda item: int.from_bytes(item[16:24], "little"))
    if head[4:8] in (b"ftyp", b"moov", b"wide", b"mdat"):
        return _walk(stream, 0, size, _mp4_box)
    if magic == b"\x1aE\xdf\xa3":  # Matroska and WebM
        return _matroska_end(_at(stream, 0, 256), size)
    if head[:3] == b"ID3" or head[:1] == b"\xff":
        return _mp3_end(stream, _id3_end(head), size)
    return size


def _walk(stream: BinaryIO, at: int, size: int, length: Callable[[bytes], int]) -> int:
    """Go from item to item of a container; an item without a length goes on to the end."""
    while at < size:
        item = _at(stream, at, 24)
        if len(item) < 8 or (count := length(item)) < 8:
            return size
        at += count
    return at


def _caf_chunk(item: bytes) -> int:
    count = int.from_bytes(item[4:12], "big", signed=True)
    return 12 + count if count >= 0 else 0


def _mp4_box(item: bytes) -> int:
    if not item[4:8].isalnum():
        return 0  # not a box: something was put behind them
    count = int.from_bytes(item[:4], "big")
    return int.from_bytes(item[8:16], "big") if count == 1 else count


def _matroska_end(head: bytes, size: int) -> int:
    """Return the end of the segment, whose size follows its identifier (RFC 8794, section 4: the first byte tells how long it is)."""
    at = head.find(b"\x18\x53\x80\x67") + 4
    if at < 4 or at >= len(head) or not head[at]:
        return size
    width = 9 - head[at].bit_length()
    declared = int.from_bytes(head[at : at + width], "big") - (1 << 7 * width)
    return size if declared in (0, (1 << 7 * width) - 1) else at + width + declared


def _id3_end(head: bytes) -> int:
    size = sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(head[6:10]))
    return 10 + size if head[:3] == b"ID3" else 0


def _mp3_end(stream: BinaryIO, start: int, size: int) -> int:
    """Return where an MP3 should end by its first frame, which may hold a table of contents (Xing, Info) with the bytes in all."""
    frame = _at(stream, start, 256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    flags = frame[at + 7] if 0 <= at < len(frame) - 16 else 0
    if not flags & 2:
        return size
    place = at + (12 if flags & 1 else 8)
    return start + int.from_bytes(frame[place : place + 4], "big")


def _length_unknown(stream: BinaryIO, head: bytes, size: int) -> bool:
    """Say whether libsndfile would not know where the sound ends."""
    if head[:3] == b"ID3":
        return _at(stream, _id3_end(head), 4) != b"fLaC"
    if head[:4] == b"fLaC":  # the length in samples: the low 36 bits of STREAMINFO's numbers; 0 where it was piped
        return int.from_bytes(head[21:26], "big") & 0xF_FFFF_FFFF == 0
    if head[:4] in (b"RIFF", b"RIFX"):
        return _wave_lies(stream, head, size)
    if head[:4] in (b"RF64", b"BW64"):  # the size of the samples: 0 where it was piped
        return not any(head[28:36])
    if head[:4] == b".snd":
        return not 0 < int.from_bytes(head[8:12], "big") < STREAMED
    return head[:1] == b"\xff" and head[1:2] >= b"\xe0"


def _wave_lies(stream: BinaryIO, head: bytes, size: int) -> bool:
    """Say whether a WAV's data size is not the truth: written before the length was known, or too large for 32 bits."""
    order: Literal["little", "big"] = "little" if head[:4] == b"RIFF" else "big"
    at = 12
    while at + 8 <= size:
        chunk = _at(stream, at, 8)
        count = int.from_bytes(chunk[4:], order)
        after = at + 8 + count + count % 2
        if chunk[:4] == b"data":
            more = size - after
            if (
                count and abs(8 + int.from_bytes(head[4:8], order) - after) <= 1
            ):  # whatever follows, the header is closed
                return more >= 1 << 32
            if count >= STREAMED:
                return more < -1
            # Samples may follow, or another chunk; not every program pads an odd size.
            behind = _at(stream, at + 8 + count, 9)
            return more > 8 and not any(_is_chunk(item, order, more) for item in (behind[:8], behind[1:]))
        at = after
    return False


def _is_chunk(item: bytes, order: Literal["little", "big"], left: int) -> bool:
    return item[:4].isascii() and item[:4].decode().isprintable() and int.from_bytes(item[4:], order) <= left


def _ogg_links(stream: BinaryIO, name: str, size: int) -> list[tuple[int, int]]:
    """Return the bytes of each recording in an Ogg file: one begins with the first pages of its streams (RFC 3533, section 6)."""
    starts, at, first = [], 0, False
    while at < size:
        page = _at(stream, at, 27 + 255)
        if page[:4] != b"OggS":
            skipped = _at(stream, at, BLOCK).find(b"OggS", 1)
            if skipped < 0:
                break  # something else was put behind it
            at += skipped
            continue
        if (begins := bool(page[5] & 2)) and not first:
            starts.append(at)
        first = begins
        segments = page[26] if len(page) > 26 else 255
        at += 27 + segments + sum(page[27 : 27 + segments])
        if len(page) < 27 + segments or at > size:
            raise _truncated(name)
    starts = starts or [0]
    return list(zip(starts, [*starts[1:], size], strict=True))


# --- FFmpeg -----------------------------------------------------------------------------------------------------------


def _by_ffmpeg(stream: BinaryIO, name: str) -> Iterator[Block]:
    import av

    # A playlist must not name other files or addresses: no protocol is allowed. Of a WAV that comes here, the size is wrong.
    options = {"protocol_whitelist": "none", "ignore_length": "1"}
    stream.seek(0)
    try:
        with av.open(_Guarded(stream), metadata_errors="ignore", options=options) as container:
            track = container.streams.best("audio")
            if track is None:
                raise AsrlibError(f"{name} holds no sound: name a recording.")
            heard = 0.0
            for frame in _packed(_frames(container, track)):
                heard += frame.samples / frame.sample_rate
                yield frame.sample_rate, frame.to_ndarray().reshape(frame.samples, -1)
            if container.format.name in EXACT and heard < float((track.duration or 0) * track.time_base) - 0.1:
                raise _truncated(name)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(name, stream, error) from None


def _frames(container: Any, track: Any) -> Iterator[Any]:
    """Yield the frames of a track; what stands between them and is no sound is left out, unless there is nothing else."""
    import av

    heard, problem = False, None
    for packet in container.demux(track):
        try:
            frames = packet.decode()
        except (av.FFmpegError, ValueError) as error:
            problem = error
            continue
        for frame in frames:
            heard = True
            yield frame
    if problem and not heard:
        raise problem


def _packed(frames: Iterator[Any]) -> Iterator[Any]:
    """Join short frames to long ones of float32, channel beside channel, as long as their form stays."""
    import av

    form, resampler = None, None
    for frame in frames:
        if form != (form := (frame.format.name, frame.layout.name, frame.sample_rate)):
            yield from resampler.resample(None) if resampler else []
            resampler = av.AudioResampler(format="flt", frame_size=max(1, BLOCK // 16 // frame.layout.nb_channels))
        frame.pts = None
        yield from resampler.resample(frame)
    yield from resampler.resample(None) if resampler else []
