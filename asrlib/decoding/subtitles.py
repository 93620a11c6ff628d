"""Transcripts as files: text, JSON, and subtitles in SRT and WebVTT, with the rules for their lines and times."""

from __future__ import annotations

import html
import json
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from asrlib.text import spaced

if TYPE_CHECKING:
    from asrlib.decoding.batching import Hypothesis

__all__ = ["FORMATS", "Span", "cues", "in_order", "write"]

FORMATS = ("txt", "json", "srt", "vtt")
Span = tuple[float, float, str]  # start seconds, end seconds, text
# Of a subtitle, as broadcasters and Netflix ask (Timed Text Style Guide, General Requirements):
MAX_COLUMNS = 42  # of a line; a Chinese or Japanese character takes two
MAX_LINES = 2
MAX_SECONDS = 7.0
MIN_SECONDS = 5 / 6
GAP = 2 / 24  # seconds between two of them: two frames
READING = 20  # columns that a reader takes in a second
LINGER = 12 / 24  # seconds that it may stay behind its last word, so that it can be read
PAUSE = 0.6  # seconds of silence after which a new one begins
CLAUSE_ENDS = ".,;:?!…。、，；：？！"
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
    """Group words to subtitles of one or two lines, which end with a clause where they can.

    Args:
        words: in their order, as `asrlib.decoding.words.times` returns them.
        language: code or name; words of a language without spaces are joined without them.
        max_columns: of a line; a longer word stands alone.
        max_seconds: that a subtitle is shown; a longer word is shown no longer.
        pause: seconds of silence after which a new one begins.

    Returns:
        Subtitles that do not overlap. Each begins with its first word; it stays until its last, and longer where that is too
        short to be read, as far as the next one leaves room.
    """
    space = " " if spaced(language) else ""
    groups: list[list[Span]] = []

    def fits(group: Sequence[Span]) -> bool:
        lines = _lines([word for *_, word in group], space, max_columns)
        narrow = len(lines) <= MAX_LINES and max(map(_columns, lines)) <= max_columns
        return narrow and group[-1][1] - group[0][0] <= max_seconds

    for word in words:
        group = groups[-1] if groups else []
        if group and word[0] - group[-1][1] >= pause:
            groups.append([word])
        elif group and not fits([*group, word]):
            rest = group[_clause(group) :]  # what follows the last comma goes along, if there is one and it fits
            along = len(rest) < len(group) and fits([*rest, word])
            groups[-1:] = [group[: -len(rest)], [*rest, word]] if along else [group, [word]]
        else:
            groups[-1:] = [[*group, word]]
    texts = ["\n".join(_lines([word for *_, word in group], space, max_columns)) for group in groups]
    spans = [
        (group[0][0], min(group[-1][1], group[0][0] + max_seconds), text)
        for group, text in zip(groups, texts, strict=True)
    ]
    return _readable(spans, max_seconds)


def _readable(spans: Sequence[Span], max_seconds: float) -> list[Span]:
    """Let each subtitle stay as long as it takes to read, and keep a gap before the next."""
    starts, found = [start for start, *_ in spans], []
    for (start, end, text), following in zip(spans, [*starts[1:], math.inf], strict=False):
        enough = min(start + _columns(text) / READING, end + LINGER)
        wanted = min(max(end, enough, start + MIN_SECONDS), start + max_seconds)
        found.append((start, max(start, min(wanted, following - GAP)), text))
    return found


def _lines(words: Sequence[str], space: str, max_columns: int) -> list[str]:
    """Return a text in one line if it fits, else in two: after a clause where both fit then, and as equal as can be."""
    whole = space.join(words)
    if _columns(whole) <= max_columns or len(words) < 2:
        return [whole]

    def badness(place: int) -> tuple[bool, bool, int]:
        widths = [_columns(space.join(part)) for part in (words[:place], words[place:])]
        return max(widths) > max_columns, words[place - 1][-1] not in CLAUSE_ENDS, abs(widths[0] - widths[1])

    place = min(range(1, len(words)), key=badness)
    return [space.join(words[:place]), space.join(words[place:])]


def _columns(line: str) -> int:
    """Return the width of a line, in columns of a terminal (Unicode Standard Annex 11)."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)


def _clause(line: Sequence[Span]) -> int:
    """Return how many words of a line come before its last clause or sentence; 0 where it has only one."""
    ends = [number for number, (*_, word) in enumerate(line, 1) if word[-1] in CLAUSE_ENDS]
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
