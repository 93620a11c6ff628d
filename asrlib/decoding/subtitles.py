"""Transcripts as files: text, JSON, and subtitles in SRT and WebVTT, with the rules for their lines and times."""

from __future__ import annotations

import html
import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from asrlib.text import spaced

if TYPE_CHECKING:
    from asrlib.decoding.batching import Hypothesis

__all__ = ["FORMATS", "Span", "cues", "in_order", "write"]

FORMATS = ("txt", "json", "srt", "vtt")
Span = tuple[float, float, str]  # start seconds, end seconds, text
MAX_COLUMNS = 42  # of a line: what broadcasters and Netflix allow; a Chinese or Japanese character takes two
MAX_SECONDS = 6.0  # that a line is shown
PAUSE = 0.6  # seconds of silence after which a new line begins
SHORTEST = 0.02  # seconds of a segment: the step in which Whisper writes times


def in_order(segments: Iterable[Span], seconds: float) -> list[Span]:
    """Return segments without those that hold no text, with times as players want them.

    Args:
        segments: in the order of their texts; a model's times may go back, stand still, or go on behind the end of the clip.
        seconds: length of the clip.

    Returns:
        As many segments as hold text: none begins before the one before it has ended, all lie within the clip, and each lasts
        at least `SHORTEST` seconds, as far as the clip has room for that.
    """
    spoken = [(start, end, text.strip()) for start, end, text in segments if text.strip()]
    least, at, found = min(SHORTEST, seconds / max(len(spoken), 1)), 0.0, []
    for left, (start, end, text) in zip(range(len(spoken), 0, -1), spoken, strict=True):
        start = max(at, min(start, seconds - least * left))
        at = min(seconds, max(start + least, min(end, seconds - least * (left - 1))))
        found.append((start, at, text))
    return found


def cues(
    words: Iterable[Span],
    language: str | None = "en",
    *,
    max_columns: int = MAX_COLUMNS,
    max_seconds: float = MAX_SECONDS,
    pause: float = PAUSE,
) -> list[Span]:
    """Group words to lines of subtitles, which end with a clause where they can.

    Args:
        words: in their order, as `asrlib.decoding.words.times` returns them.
        language: code or name; words of a language without spaces are joined without them.
        max_columns: of a line; a longer word stands alone.
        max_seconds: that a line is shown; a longer word is shown no longer.
        pause: seconds of silence after which a new line begins.

    Returns:
        Lines that do not overlap; each lasts from its first word to its last.
    """
    space = " " if spaced(language) else ""
    lines: list[list[Span]] = []

    def fits(line: Sequence[Span]) -> bool:
        return _columns(joined(line)) <= max_columns and line[-1][1] - line[0][0] <= max_seconds

    def joined(line: Sequence[Span]) -> str:
        return space.join(word for *_, word in line)

    for word in words:
        line = lines[-1] if lines else []
        if line and word[0] - line[-1][1] >= pause:
            lines.append([word])
        elif line and not fits([*line, word]):
            rest = line[_clause(line) :]  # what follows the last comma goes along, if there is one and it fits
            along = len(rest) < len(line) and fits([*rest, word])
            lines[-1:] = [line[: -len(rest)], [*rest, word]] if along else [line, [word]]
        else:
            lines[-1:] = [[*line, word]]
    return [(line[0][0], min(line[-1][1], line[0][0] + max_seconds), joined(line)) for line in lines]


def _columns(line: str) -> int:
    """Return the width of a line, in columns of a terminal (Unicode Standard Annex 11)."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)


def _clause(line: Sequence[Span]) -> int:
    """Return how many words of a line come before its last clause or sentence; 0 where it has only one."""
    ends = [number for number, (*_, word) in enumerate(line, 1) if word[-1] in ".,;:?!…。、，；：？！"]
    return next((number for number in reversed(ends) if number < len(line)), 0)


def _clock(seconds: float, comma: str) -> str:
    """Write a time as subtitles do, 00:01:02,345; rounded down, so that none lies behind the end."""
    milliseconds = int(seconds * 1000 + 1e-6)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{comma}{rest % 1000:03}"


def write(transcript: Hypothesis, format: str) -> str:
    """Return a transcript as the content of a file in one of `FORMATS`, with its times `in_order`."""
    segments = in_order(transcript.segments, transcript.seconds_audio)
    if format == "txt":
        return transcript.text.strip() + "\n"
    if format == "json":
        parts = [{"start": start, "end": end, "text": text} for start, end, text in segments]
        content = {"id": transcript.id, "text": transcript.text, "language": transcript.language}
        content |= {"seconds": transcript.seconds_audio, "segments": parts}
        return json.dumps(content, ensure_ascii=False) + "\n"
    if format == "srt":
        lines = [f"{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n" for start, end, text in segments]
        return "".join(f"{number}\n{line}" for number, line in enumerate(lines, 1))
    lines = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{html.escape(text, quote=False)}\n\n"
        for start, end, text in segments
    ]
    return "WEBVTT\n\n" + "".join(lines)
