"""Sound out of a pipe while it is being recorded: WAV, or bare samples."""

from __future__ import annotations

import io
import queue
import threading
import wave
from collections.abc import Iterable, Iterator

import numpy as np
import soxr

from asrlib import AsrlibError

__all__ = ["ahead", "samples"]

RATE = 16_000  # Hz, of bare samples, and of what comes out
BLOCK = 0.1  # seconds that are read at a time
OTHERS = (b"OggS", b"fLaC", b"ID3", b"\xff\xfb", b"\x1aE\xdf\xa3", b"FORM", b"caff")  # first bytes of other forms
WANTED = "a pipe must bring WAV of 16 bits, or bare samples of 16 kHz, one channel, 16 bits: ffmpeg -i FILE -f wav - makes it"


def samples(stream: io.BufferedReader) -> Iterator[np.ndarray]:
    """Yield mono float32 at 16 kHz as it comes, until the pipe ends.

    Raises:
        AsrlibError: another form of sound, or no sound at all.
    """
    head = stream.peek(12)[:12]
    if not head:
        raise AsrlibError("Nothing came out of the pipe: check the command before it.")
    if head.startswith(OTHERS) or head[4:8] == b"ftyp":
        raise AsrlibError(f"This sound is compressed; {WANTED}.")
    if not head.startswith((b"RIFF", b"RIFX", b"RF64")):
        size = 2 * round(BLOCK * RATE)
        while data := stream.read(size):
            yield _mono(data, 1)
        return
    try:
        with wave.open(stream) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if width != 2:
                raise AsrlibError(f"This WAV has {8 * width} bits a sample; {WANTED}.")
            resampler = soxr.ResampleStream(rate, RATE, 1)
            # No length: the header was written before it was known.
            read = file.readframes if file.getnframes() else lambda frames: stream.read(2 * channels * frames)
            while data := read(round(BLOCK * rate)):
                yield resampler.resample_chunk(_mono(data, channels))
            yield resampler.resample_chunk(np.empty(0, np.float32), last=True)
    except (wave.Error, EOFError) as error:
        raise AsrlibError(f"This WAV cannot be read ({error}); {WANTED}.") from None


def _mono(data: bytes, channels: int) -> np.ndarray:
    frames = np.frombuffer(data[: len(data) // (2 * channels) * 2 * channels], "<i2").reshape(-1, channels)
    return frames.mean(axis=1, dtype=np.float32) / 32768


def ahead(blocks: Iterable[np.ndarray], least: int) -> Iterator[np.ndarray]:
    """Yield all that has come since the last time, and at least so many samples before the end.

    A thread reads on meanwhile, so that the pipe never fills up and the recorder loses nothing.
    """
    come: queue.SimpleQueue[np.ndarray | BaseException | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for block in blocks:
                come.put(block)
            come.put(None)
        except BaseException as error:
            come.put(error)

    threading.Thread(target=read, name="asrlib-pipe", daemon=True).start()
    going = True
    while going:
        parts: list[np.ndarray] = []
        while going and (sum(map(len, parts)) < least or not come.empty()):
            block = come.get()
            if isinstance(block, BaseException):
                raise block
            going = block is not None
            parts += [block] if block is not None else []
        if parts:
            yield np.concatenate(parts)
