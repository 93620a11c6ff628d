"""Samples out of any file of sound: libsndfile where its answer is right, FFmpeg (PyAV) for all others.

libsndfile believes a header, and so loses sound: it stops where an MP3's estimated length ends, and finds nothing behind a
header that was written before the length was known. FFmpeg decodes such files, and those that libsndfile does not know (MP4,
WebM, AAC, AMR, WMA, video), to their real end. A container that says where it should end, and does not reach it, is refused.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from asrlib import AsrlibError
from asrlib.io.containers import announced_end, length_unknown, read_at, recordings, truncated

if TYPE_CHECKING:
    import soundfile

__all__ = ["BLOCK", "SUFFIXES", "blocks", "header_seconds", "opened", "write"]

BLOCK = 1 << 20  # samples decoded at a time, all channels together: 4 MB
EXACT = ("ape", "tak", "tta", "wv")  # forms whose header counts the samples and not the bytes
# Names under which sound and video with sound are kept; what a file holds is found from its first bytes.
ENDINGS = (
    "3g2 3gp aac ac3 aif aifc aiff amr ape asf au avi awb caf dts eac3 flac flv gsm m2ts m4a m4b m4v mka mkv mov mp2 mp3 mp4 mpeg "
    "mpg mts nist oga ogg ogv opus qt ra rf64 rm snd sph spx ts tta voc w64 wav wave webm wma wmv wv"
)
SUFFIXES = frozenset(f".{ending}" for ending in ENDINGS.split())

CODECS = {".m4a": "aac", ".mp4": "aac", ".webm": "libopus"}  # what phones, cameras and browsers record

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


def blocks(stream: BinaryIO, name: str) -> Iterator[Block]:
    """Yield the samples of a file from its first to its last, at most `BLOCK` at a time.

    The rate and the number of channels may change from block to block: recordings that were joined differ.

    Raises:
        AsrlibError: no sound in it, a form that neither library reads, or a missing end.
    """
    import soundfile

    for one in recordings(stream, name):
        file = _by_libsndfile(one, name)
        if file is None:
            yield from _by_ffmpeg(one, name)
            continue
        with file:
            left = file.frames
            while left > 0:
                try:
                    block = file.read(max(1, BLOCK // file.channels), dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    raise _unreadable(name, one, error) from None
                if not len(block):
                    raise truncated(name)
                left -= len(block)
                yield file.samplerate, block


def header_seconds(stream: BinaryIO, name: str) -> float | None:
    """Return the length of a file whose header knows it, in seconds; None where only decoding can tell."""
    seconds = 0.0
    for one in recordings(stream, name):
        file = _by_libsndfile(one, name)
        if file is None:
            return None
        with file:
            seconds += file.frames / file.samplerate
    return seconds


def _by_libsndfile(stream: BinaryIO, name: str) -> soundfile.SoundFile | None:
    """Return a recording as a file of libsndfile; None where FFmpeg is to read it."""
    import soundfile

    size = stream.seek(0, os.SEEK_END)
    head = read_at(stream, 0, 64)
    if announced_end(stream, head, size) > size + 1:  # a RIFF of an odd size may lack its last byte
        raise truncated(name)
    if length_unknown(stream, head, size):
        return None
    stream.seek(0)
    try:
        file = soundfile.SoundFile(stream)
    except (soundfile.LibsndfileError, OSError):
        return None
    return None if file.subtype.startswith("MPEG") else file


def _by_ffmpeg(stream: BinaryIO, name: str) -> Iterator[Block]:
    import av

    # A playlist must not name other files or addresses: no protocol is allowed. Of a WAV that comes here, the size is wrong.
    options = {"protocol_whitelist": "none", "ignore_length": "1"}
    stream.seek(0)
    try:
        with av.open(stream, metadata_errors="ignore", options=options) as container:
            track = container.streams.best("audio")
            if track is None:
                raise AsrlibError(f"{name} holds no sound: name a recording.")
            heard = 0.0
            for frame in _packed(_frames(container, track)):
                heard += frame.samples / frame.sample_rate
                yield frame.sample_rate, frame.to_ndarray().reshape(frame.samples, -1)
            if container.format.name in EXACT and heard < float((track.duration or 0) * track.time_base) - 0.1:
                raise truncated(name)
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


def write(path: Path, samples: np.ndarray, rate: int = 16_000) -> None:
    """Write one channel as phones, cameras and browsers do, at 48 kHz.

    Args:
        path: its ending is one of `CODECS`.
        samples: float32 within [-1, 1], shape (samples,).
        rate: of the samples, in Hz.
    """
    import av

    with av.open(str(path), "w") as container:
        track = container.add_stream(CODECS[path.suffix], rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=track.format, rate=48_000)
        for part in (*resampler.resample(frame), None):
            container.mux(track.encode(part))
