"""Samples out of any file of sound: libsndfile where its answer is right, FFmpeg (PyAV) for all others.

libsndfile believes a header: it stops where an MP3's estimated length ends, hears the first of several recordings joined to one Ogg or
MP3 file, and finds nothing behind a header that was written before the length was known. Such files, and those that it does not
know (MP4, WebM, AAC, AMR, WMA, video), are decoded by FFmpeg to their real end. A container that says itself where it should end, and does
not reach it, is refused.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from asrlib import AsrlibError

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
    data = None
    if isinstance(source, Mapping):
        data, source = source.get("bytes"), source.get("path")
    elif isinstance(source, bytes):
        data, source = source, None
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


def blocks(stream: BinaryIO, name: str) -> Iterator[Block]:
    """Yield the samples of a file from its first to its last, at most `BLOCK` at a time.

    The rate and the number of channels may change from block to block: recordings that were joined differ.

    Raises:
        AsrlibError: no sound in it, a form that neither library reads, or a missing end.
    """
    import soundfile

    files = _by_libsndfile(stream, name)
    if not isinstance(files, list):
        yield from _gathered(_by_ffmpeg(stream, name, files))
        return
    for file in files:
        with file:
            left = file.frames
            while left > 0:
                try:
                    block = file.read(max(1, BLOCK // file.channels), dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    raise _unreadable(name, stream, error) from None
                if not len(block):
                    raise _truncated(name)
                left -= len(block)
                yield file.samplerate, block


def header_seconds(stream: BinaryIO, name: str) -> float | None:
    """Return the length of a file whose header knows it, in seconds; None where only decoding can tell."""
    files = _by_libsndfile(stream, name)
    if not isinstance(files, list):
        return None
    with contextlib.ExitStack() as stack:
        return sum(stack.enter_context(file).frames / file.samplerate for file in files)


def _by_libsndfile(stream: BinaryIO, name: str) -> list[Any] | Exception | None:
    """Return a file of libsndfile for each recording in ``stream``, or why FFmpeg is to read it."""
    import soundfile

    size = stream.seek(0, os.SEEK_END)
    head = _at(stream, 0, 64)
    if _end(stream, head, size) > size + 1:  # a RIFF of an odd size may lack its last byte
        raise _truncated(name)
    if _needs_ffmpeg(stream, head, size):
        return None
    pieces: list[BinaryIO] = [stream]
    if head.startswith(b"OggS"):
        links = _ogg_links(stream, name, size)
        if len(links) > 1:
            pieces = [io.BytesIO(_at(stream, start, stop - start)) for start, stop in links]
    files = []
    try:
        for piece in pieces:
            piece.seek(0)
            files.append(soundfile.SoundFile(_View(piece)))
    except (soundfile.LibsndfileError, OSError) as error:
        return error
    return None if files[0].subtype.startswith("MPEG") else files


def _truncated(name: str) -> AsrlibError:
    return AsrlibError(f"{name} is truncated: its end is missing, so fetch or record it again.")


class _View:
    """A stream as the libraries are to see it: a damaged header leads to no place before its start.

    Args:
        stream: can seek.
        place: of four bytes that are read as "not known", the largest number.
    """

    def __init__(self, stream: BinaryIO, place: int | None = None) -> None:
        self.stream, self.place, self.tell = stream, place, stream.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self.tell(), self.stream.seek(0, os.SEEK_END) if whence == os.SEEK_END else 0)[whence]
        return self.stream.seek(max(0, start + offset))

    def read(self, count: int = -1) -> bytes:
        start = self.tell()
        data = self.stream.read(count)
        if self.place is None or not start - 4 < self.place < start + len(data):
            return data
        changed = bytearray(data)
        for byte in range(max(start, self.place), min(start + len(data), self.place + 4)):
            changed[byte - start] = 0xFF
        return bytes(changed)


def _at(stream: BinaryIO, place: int, count: int) -> bytes:
    stream.seek(place)
    return stream.read(count)


# --- What a container says of its own size ----------------------------------------------------------------------------


def _end(stream: BinaryIO, head: bytes, size: int) -> int:
    """Return the byte after the last one that the container announces; ``size``, the file's, where it announces none."""
    end = size
    if head[:4] in (b"RIFF", b"RIFX", b"FORM"):
        declared = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        end = size if declared >= STREAMED else 8 + declared
    elif head[:4] == b"RF64":
        declared = int.from_bytes(head[20:28], "little")
        end = size if declared >> 62 else 8 + declared
    elif head[:4] == b"riff":  # W64
        end = int.from_bytes(head[16:24], "little")
    elif head[:4] == b".snd":
        declared = int.from_bytes(head[8:12], "big")
        end = size if declared >= STREAMED else int.from_bytes(head[4:8], "big") + declared
    elif head[:4] == b"caff":
        end = _walk(stream, 8, size, _caf_chunk)
    elif head[4:8] in (b"ftyp", b"moov", b"wide", b"mdat"):
        end = _walk(stream, 0, size, _mp4_box)
    elif head[:4] == b"0&\xb2u":  # ASF
        end = _walk(stream, 0, size, lambda item: int.from_bytes(item[16:24], "little"))
    elif head[:4] == b"\x1aE\xdf\xa3":  # Matroska and WebM
        end = _matroska_end(_at(stream, 0, 256), size)
    elif head[:3] == b"ID3" or head[:1] == b"\xff":
        end = _mp3_end(stream, _id3_end(head), size)
    return end


def _walk(stream: BinaryIO, at: int, size: int, length: Callable[[bytes], int]) -> int:
    """Go from item to item of a container; an item without a length goes on to the end."""
    while at < size:
        item = _at(stream, at, 24)
        if len(item) < 8 or (count := length(item)) < 8:
            return size
        at += count
    return at


def _caf_chunk(item: bytes) -> int:
    return 12 + int.from_bytes(item[4:12], "big", signed=True)


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
    if head[:3] != b"ID3":
        return 0
    return 10 + sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(head[6:10]))


def _mp3_end(stream: BinaryIO, start: int, size: int) -> int:
    """Return where an MP3 should end by its first frame, which may hold a table of contents (Xing, Info) with the bytes in all."""
    frame = _at(stream, start, 256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    flags = frame[at + 7] if 0 <= at < len(frame) - 16 else 0
    if not flags & 2:
        return size
    place = at + (12 if flags & 1 else 8)
    return start + int.from_bytes(frame[place : place + 4], "big")


def _needs_ffmpeg(stream: BinaryIO, head: bytes, size: int) -> bool:
    """Say whether libsndfile would not know where the sound ends."""
    if head[:3] == b"ID3":
        return _at(stream, _id3_end(head), 4) != b"fLaC"
    if head[:4] == b"fLaC":  # the length in samples: the low 36 bits of STREAMINFO's numbers; 0 where it was piped
        return int.from_bytes(head[21:26], "big") & 0xF_FFFF_FFFF == 0
    if head[:4] in (b"RIFF", b"RIFX"):
        return _wave_data(stream, head, size) is not None
    return head[:1] == b"\xff" and head[1:2] >= b"\xe0"


def _wave_data(stream: BinaryIO, head: bytes, size: int) -> int | None:
    """Return the place of a WAV's data size if that is not the truth: written before the length was known, or too large for 32 bits."""
    order, at = "little" if head[:4] == b"RIFF" else "big", 12
    while at + 8 <= size:
        chunk = _at(stream, at, 8)
        count = int.from_bytes(chunk[4:], order)
        after = at + 8 + count + count % 2
        if chunk[:4] == b"data":
            behind = _at(stream, at + 8 + count, 5)
            more = size - after
            if (
                count and abs(8 + int.from_bytes(head[4:8], order) - after) <= 1
            ):  # whatever follows, the header is closed
                lies = more >= 1 << 32
            elif count >= STREAMED:
                lies = more < -1
            else:  # samples may follow, or another chunk; not every program pads an odd size
                lies = more > 8 and not any(name.decode("latin-1").isprintable() for name in (behind[:4], behind[1:]))
            return at + 4 if lies else None
        at = after
    return None


def _ogg_links(stream: BinaryIO, name: str, size: int) -> list[tuple[int, int]]:
    """Return the bytes of each recording in an Ogg file, from page to page (RFC 3533, section 6).

    A recording begins with the first pages of its streams; several may follow one another.
    """
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


def _by_ffmpeg(stream: BinaryIO, name: str, reason: Exception | None) -> Iterator[Block]:
    import av

    size = stream.seek(0, os.SEEK_END)
    head = _at(stream, 0, 64)
    place = _wave_data(stream, head, size) if head[:4] in (b"RIFF", b"RIFX") else None
    stream.seek(0)
    try:
        # A playlist must not name other files or addresses: no protocol is allowed.
        container = av.open(_View(stream, place), metadata_errors="ignore", options={"protocol_whitelist": "none"})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(name, stream, reason or error) from None
    with container:
        track = container.streams.best("audio")
        if track is None:
            raise AsrlibError(f"{name} holds no sound: name a recording.")
        heard, problem = 0.0, reason
        packets = container.demux(track)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError, ValueError) as error:
                raise _unreadable(name, stream, error) from None
            if packet is None:
                break
            try:
                frames = [(frame.sample_rate, _samples(frame)) for frame in packet.decode() if frame.samples]
            except (av.FFmpegError, ValueError) as error:  # what stands between the frames is no sound
                problem = error
                continue
            for rate, block in frames:
                heard += len(block) / rate
                yield rate, block
        if not heard and problem:
            raise _unreadable(name, stream, problem)
        if container.format.name in EXACT and heard < float((track.duration or 0) * track.time_base) - 0.1:
            raise _truncated(name)


def _gathered(blocks: Iterator[Block]) -> Iterator[Block]:
    """Join the short blocks of a decoder, as long as their rate and channels stay."""
    held: list[np.ndarray] = []
    form, count = (0, 0), 0
    for rate, block in blocks:
        if held and ((rate, block.shape[1]) != form or count > BLOCK // 16):
            yield form[0], np.concatenate(held)
            held, count = [], 0
        held.append(block)
        form, count = (rate, block.shape[1]), count + block.size
    if held:
        yield form[0], np.concatenate(held)


def _samples(frame: Any) -> np.ndarray:
    """Return a frame as float32 of shape (samples, channels), values within about [-1, 1]."""
    import av

    channels = frame.layout.nb_channels
    if frame.format.is_planar and channels > 7:  # PyAV reads beyond such a frame: FFmpeg itself interleaves it
        frame.pts = None
        (frame,) = av.AudioResampler(format="flt").resample(frame)
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.float32) / -float(np.iinfo(values.dtype).min)
    return values.astype(np.float32, copy=False)
