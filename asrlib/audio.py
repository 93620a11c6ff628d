"""Audio in: decode, check, resample; and long-form recordings stitched from short clips with known times."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from asrlib import AsrlibError
from asrlib.io import sound

__all__ = ["PAUSE", "SAMPLING_RATE", "Joined", "Recording", "Stored", "duration", "load", "play", "stitch", "windows"]

SAMPLING_RATE = 16_000  # Hz, what every Whisper model was trained on
MAX_SECONDS = 6 * 3600.0  # 1.4 GB as float32; a longer file is a mistake or an attack
SILENCE = 1e-4  # peak below -80 dB of full scale: no microphone is that quiet
PAUSE = 0.3  # seconds between clips that are joined
CANCELLED = 1e-3  # the channels' average has less than this share of their power: they are each other's opposite


def duration(source: Any) -> float:
    """Return the length of a recording in seconds: from its header where that knows it, else by decoding.

    Args:
        source: as for `load`, but no array.

    Raises:
        AsrlibError: no such file, no audio that can be read, or a missing end.
    """
    with sound.opened(source) as (stream, name):
        seconds = sound.header_seconds(stream, name)
        return sum(len(block) / rate for rate, block in sound.blocks(stream, name)) if seconds is None else seconds


def _decoded(stream: Any, name: str, max_seconds: float, channel: int | None = None) -> np.ndarray:
    """Return the average of the channels, or one of them, at 16 kHz; only a block is in memory besides it."""
    import soxr

    seconds = sound.header_seconds(stream, name)
    _check_length(name, f"{seconds or 0:,.0f} s, more", seconds or 0, max_seconds)
    heard, taken, known = bytearray(), 0.0, SAMPLING_RATE
    resampler, powers, power = None, np.zeros(1), 0.0
    for rate, block in sound.blocks(stream, name):
        taken += len(block) / rate
        _check_length(name, "more", taken, max_seconds)
        if channel is None:
            mono = block.mean(axis=1, dtype=np.float32)
            powers = np.zeros(block.shape[1]) if len(powers) != block.shape[1] else powers
            powers += np.einsum("sc,sc->c", block, block)
            power += float(mono @ mono)
        else:
            mono = np.ascontiguousarray(block[:, min(channel, block.shape[1] - 1)])
        if rate != known:  # recordings of several rates may be joined
            heard.extend(_rest(resampler))
            resampler, known = soxr.ResampleStream(rate, SAMPLING_RATE, 1) if rate != SAMPLING_RATE else None, rate
        heard.extend(resampler.resample_chunk(mono) if resampler else mono)
    heard.extend(_rest(resampler))
    if power < CANCELLED * powers.mean():
        return _decoded(stream, name, max_seconds, int(powers.argmax()))
    return np.frombuffer(heard, np.float32)


def _rest(resampler: Any) -> np.ndarray:
    """Return what a stream of soxr, if there is one, still holds."""
    return resampler.resample_chunk(np.empty(0, np.float32), last=True) if resampler else np.empty(0, np.float32)


def _check_length(name: str, lasts: str, seconds: float, allowed: float) -> None:
    if seconds > allowed:
        raise AsrlibError(f"{name} lasts {lasts} than the {allowed:,.0f} s allowed: cut it into parts.")


def load(source: Any, *, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """Decode sound, or the sound of a video, to mono, 16 kHz, float32.

    Args:
        source: path (a pipe such as ``/dev/stdin`` too), encoded bytes, an undecoded row of ``datasets`` (a dict with ``path``
            and ``bytes``), such a row that is `Stored`, or several of these `Joined`. A 1-D numpy array of floats is taken as 16 kHz audio and only checked.
        max_seconds: longer audio is refused.

    Returns:
        Array of shape (samples,), values within about [-1, 1]; channels are averaged (of channels that cancel each other, the
        loudest is taken), the rate is changed by soxr (HQ). It takes 64 kB a second, and an eighth more is needed to make it.

    Raises:
        AsrlibError: missing, unreadable, truncated, empty, silent (peak below -80 dB of full scale) or too long audio, or
            samples that are not numbers; the message names the file.
    """
    if isinstance(source, np.ndarray):
        if source.dtype.kind != "f":
            raise AsrlibError(
                f"The audio array holds {source.dtype}: give floats within [-1, 1], such as int16 / 32768."
            )
        samples, name = source.astype(np.float32, copy=False), "the audio array"
        if samples.ndim != 1:
            raise AsrlibError(
                f"The audio array has shape {samples.shape}: give one channel, shape (samples,), at 16 kHz."
            )
    elif isinstance(source, Stored):
        return load(source.row, max_seconds=max_seconds)
    elif isinstance(source, Joined):
        pause = np.zeros(int(PAUSE * SAMPLING_RATE), np.float32)
        pieces = [piece for part in source.parts for piece in (pause, load(part, max_seconds=max_seconds))]
        samples, name = np.concatenate(pieces[1:]), "the joined audio"
    else:
        with sound.opened(source) as (stream, name):
            samples = _decoded(stream, name, max_seconds)
    if not len(samples):  # a handful of samples at a high rate is less than one at 16 kHz
        raise AsrlibError(f"{name} holds no sample: fetch or record it again.")
    peak = np.maximum(samples.max(), -samples.min())  # without a copy; not a number where a sample is none
    if not np.isfinite(peak):
        raise AsrlibError(f"{name} holds samples that are not numbers (NaN or infinite): export it again.")
    if peak < SILENCE:
        raise AsrlibError(f"{name} is silent: check the recording.")
    return np.ascontiguousarray(samples, dtype=np.float32)


@dataclass(frozen=True)
class Stored:
    """The sound of one row of a table; nothing of it is in memory until it is read, where a parquet file holds the bytes."""

    table: Any
    place: int

    @property
    def row(self) -> dict[str, Any]:
        """Return ``path`` and ``bytes``, read anew."""
        return self.table[self.place]["audio"]


@dataclass(frozen=True)
class Joined:
    """Clips that are one recording, with a pause of `PAUSE` between two; decoded when they are loaded."""

    parts: tuple[Any, ...]


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


def windows(rows: Iterable[Mapping[str, Any]], *, seconds: float = 28.0, seed: int = 0) -> list[Recording]:
    """Join clips, in order, to recordings of at most so many seconds each, with `stitch`.

    Args:
        rows: as there, with ``seconds`` too; a clip that would fill a recording alone, but for two seconds, is left out.
        seconds: of a recording at most.
        seed: of the pauses.
    """
    left = [row for row in rows if row["seconds"] <= seconds - 2]
    made: list[Recording] = []
    while left:
        made.append(stitch(left, seconds=seconds, seed=seed + len(made)))
        left = left[len(made[-1].ids) :]
    return made


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
