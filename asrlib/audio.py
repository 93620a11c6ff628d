"""Audio in: decode, check, resample; and long-form recordings stitched from short clips with known times."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asrlib import AsrlibError

__all__ = ["SAMPLING_RATE", "Recording", "duration", "load", "play", "stitch"]

SAMPLING_RATE = 16_000  # Hz, what every Whisper model was trained on
MAX_SECONDS = 6 * 3600.0  # 1.4 GB as float32; a longer file is a mistake or an attack
SILENCE = 1e-4  # peak below -80 dB of full scale: no microphone is that quiet
BLOCK = 1 << 20  # samples decoded at a time, all channels together: 4 MB


def _source(source: Any) -> tuple[Any, str]:
    """Return what soundfile can open, and a name for messages."""
    if isinstance(source, Mapping):
        path, data = source.get("path"), source.get("bytes")
        if data is not None:
            return io.BytesIO(data), path or "audio bytes"
        source = path
    if isinstance(source, bytes):
        return io.BytesIO(source), "audio bytes"
    if source is None or sys.platform == "win32":
        return source, str(source)
    return os.fsencode(source), str(source)  # a name may hold bytes that are no UTF-8


def _check_complete(opened: Any, name: str) -> None:
    """Raise where a WAV or Ogg container says itself that its tail is missing; libsndfile would read the rest silently."""
    truncated = False
    with contextlib.nullcontext(opened) if isinstance(opened, io.BytesIO) else open(opened, "rb") as stream:
        head, size = stream.read(12), stream.seek(0, os.SEEK_END)
        if head[:4] == b"RIFF":
            declared = int.from_bytes(head[4:8], "little")
            truncated = 0 < declared < 0xFFFF0000 and declared + 8 > size + 1  # streamed WAVs declare 0 or -1
        elif head[:4] == b"OggS":
            stream.seek(max(0, size - 65_536))  # an Ogg page is never longer
            tail = stream.read()
            page = tail.rfind(b"OggS")
            header = tail[page : page + 27 + 255]
            segments = header[26] if page >= 0 and len(header) > 26 else -1
            truncated = segments < 0 or page + 27 + segments + sum(header[27 : 27 + segments]) > len(tail)
        stream.seek(0)
    if truncated:
        raise AsrlibError(f"{name} is truncated: its end is missing, so fetch or record it again.")


def duration(source: Any) -> float:
    """Return the length of an audio file in seconds, from its header.

    Args:
        source: as for `load`.

    Raises:
        AsrlibError: no such file, or no audio that libsndfile reads.
    """
    import soundfile

    opened, name = _source(source)
    try:
        return float(soundfile.info(opened).duration)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> AsrlibError:
    if isinstance(error, FileNotFoundError) or (name != "audio bytes" and not Path(name).exists()):
        return AsrlibError(f"{name} does not exist: check the path.")
    if Path(name).is_dir():
        return AsrlibError(f"{name} is a folder, not an audio file.")
    if name != "audio bytes" and Path(name).stat().st_size == 0:
        return AsrlibError(f"{name} is empty (0 bytes): fetch or record it again.")
    reason = str(getattr(error, "error_string", error)).rstrip(". ")
    return AsrlibError(f"{name} is not audio that can be read ({reason}): convert it to WAV, FLAC, Ogg or MP3.")


def _decoded(file: Any) -> tuple[np.ndarray, float]:
    """Return all channels averaged, at 16 kHz, and the peak before resampling; not a number where a sample is none.

    Only a block is in memory besides the result, whatever the rate and the number of channels. The samples are those of
    ``soxr.resample``, which goes through the whole in the same way.
    """
    import soxr

    rate, peak, done = file.samplerate, 0.0, 0
    samples = np.empty(-(-file.frames * SAMPLING_RATE // rate) + 1, np.float32)
    resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1) if rate != SAMPLING_RATE else None
    reading = True
    while reading:
        block = file.read(max(1, BLOCK // file.channels), dtype="float32", always_2d=True).mean(
            axis=1, dtype=np.float32
        )
        reading, peak = len(block) > 0, np.maximum(peak, _peak(block))
        block = resampler.resample_chunk(block, last=not reading) if resampler else block
        samples[done : done + len(block)] = block
        done += len(block)
    return samples[:done], float(peak)


def _peak(samples: np.ndarray) -> float:
    """Return the largest absolute value without a copy of the samples; not a number where one of them is none."""
    return np.maximum(samples.max(), -samples.min()) if len(samples) else 0.0


def load(source: Any, *, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """Decode any audio that libsndfile reads to mono, 16 kHz, float32.

    Args:
        source: path, encoded bytes, or an undecoded row of ``datasets`` (a dict with ``path`` and ``bytes``). A 1-D numpy
            array is taken as 16 kHz audio and only checked.
        max_seconds: longer audio is refused before it is decoded.

    Returns:
        Array of shape (samples,), values within about [-1, 1]; channels are averaged, the rate is changed by soxr (HQ). It
        takes 64 kB a second, and little more is needed to make it.

    Raises:
        AsrlibError: missing, unreadable, truncated, empty, silent (peak below -80 dB of full scale) or too long audio, or
            samples that are not numbers; the message names the file.
    """
    import soundfile

    if isinstance(source, np.ndarray):
        samples, name = source.astype(np.float32, copy=False), "the audio array"
        if samples.ndim != 1:
            raise AsrlibError(
                f"The audio array has shape {samples.shape}: give one channel, shape (samples,), at 16 kHz."
            )
        peak = _peak(samples)
    else:
        opened, name = _source(source)
        try:
            _check_complete(opened, name)
            with soundfile.SoundFile(opened) as file:
                seconds = file.frames / file.samplerate
                if seconds > max_seconds:
                    raise AsrlibError(
                        f"{name} lasts {seconds:,.0f} s, more than the {max_seconds:,.0f} s allowed: cut it into parts."
                    )
                samples, peak = _decoded(file)
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            raise _unreadable(name, error) from None
    if not len(samples):  # a handful of samples at a high rate is less than one at 16 kHz
        raise AsrlibError(f"{name} holds no sample: fetch or record it again.")
    if not np.isfinite(peak):
        raise AsrlibError(f"{name} holds samples that are not numbers (NaN or infinite): export it again.")
    if peak < SILENCE:
        raise AsrlibError(f"{name} is silent: check the recording.")
    return np.ascontiguousarray(samples, dtype=np.float32)


@dataclass(frozen=True)
class Recording:
    """A long-form recording whose words and times are known.

    Attributes:
        audio: mono float32 at 16 kHz, shape (samples,).
        text: reference transcript, the clips' texts in order.
        segments: (start seconds, end seconds, text) of each clip.
        ids: clip ids in order.
    """

    audio: np.ndarray
    text: str
    segments: tuple[tuple[float, float, str], ...]
    ids: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.audio) / SAMPLING_RATE


def stitch(
    rows: Iterable[Mapping[str, Any]], *, seconds: float = 180.0, pause: tuple[float, float] = (0.3, 1.2), seed: int = 0
) -> Recording:
    """Join clips of one speaker to a recording, with pauses of known length between them.

    Args:
        rows: mappings with ``id``, ``audio`` and ``text``, such as rows of a corpus; taken in order.
        seconds: stop before the clip that would make the recording longer than this.
        pause: shortest and longest pause in seconds, drawn uniformly.
        seed: of the pauses.

    Raises:
        AsrlibError: a clip that cannot be read, or no clip that fits.
    """
    generator = np.random.default_rng(seed)
    pieces, segments, ids = [], [], []
    at = 0
    for row in rows:
        clip = load(row["audio"])
        gap = int(generator.uniform(*pause) * SAMPLING_RATE)
        if at + gap + len(clip) > seconds * SAMPLING_RATE:
            break
        start = at + gap
        at = start + len(clip)
        pieces += [np.zeros(gap, np.float32), clip]
        segments.append((start / SAMPLING_RATE, at / SAMPLING_RATE, row["text"]))
        ids.append(row["id"])
    if not ids:
        raise AsrlibError(f"No clip fits into a recording of {seconds:g} s: give clips, or a longer recording.")
    return Recording(np.concatenate(pieces), " ".join(text for *_, text in segments), tuple(segments), tuple(ids))


def play(audio: np.ndarray, *, max_seconds: float = 5.0) -> Any:
    """Return a small player for a notebook: at most ``max_seconds`` of the audio, as Ogg Vorbis of some 25 kB.

    Args:
        audio: mono float32 at 16 kHz, shape (samples,).
        max_seconds: the rest is left out, so that the committed notebook stays small.
    """
    import soundfile
    from IPython.display import Audio

    buffer = io.BytesIO()
    soundfile.write(buffer, audio[: int(max_seconds * SAMPLING_RATE)], SAMPLING_RATE, format="OGG", subtype="VORBIS")
    return Audio(data=buffer.getvalue())
