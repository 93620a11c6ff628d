"""Recordings of more than a window, several side by side: window after window, as in the Whisper paper, section 3.8."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from asrlib import whisper
from asrlib.decoding.batching import Clip, Result
from asrlib.decoding.search import Found
from asrlib.decoding.timestamps import Rules, Segment, cut

__all__ = ["WindowEngine", "decode", "frame_count"]

Spans = Sequence[tuple[int, int]]  # (first frame, frame after the last) of what is to be heard
SURE = 0.5  # temperature up to which a text tells the next window something


class WindowEngine(Protocol):
    """What decodes window after window: `asrlib.decoding.transcription.TorchEngine`, as far as it is used here."""

    model: Any
    processor: Any
    generation: Any
    positions: int
    language: str | None
    task: str
    previous_text: bool
    encode: Callable[[torch.Tensor], tuple[torch.Tensor, Any]]
    languages: Callable[[torch.Tensor], list[str]]
    write: Callable[..., list[Found]]


def decode(
    engine: WindowEngine, clips: Sequence[Clip], features: Sequence[torch.Tensor], spans: Sequence[Spans]
) -> list[Result]:
    """Decode clips window after window, side by side; a window begins where the whole segments of the last one end.

    Args:
        engine: the model and what it was asked for.
        clips: the recordings.
        features: of each, (1, mel bins, frames).
        spans: of each, in order and apart; windows do not reach beyond them.
    """
    tapes = [_Tape(clip, sound, part) for clip, sound, part in zip(clips, features, spans, strict=True)]
    times, window = whisper.time_tokens(engine.generation), 2 * engine.positions
    while going := [tape for tape in tapes if tape.spans]:
        parts = [tape.window(window) for tape in going]
        states, _ = engine.encode(torch.cat(parts))
        if going[0].language is None:  # the first window of each
            for tape, language in zip(going, engine.languages(states), strict=True):
                tape.language = language
        prompts = [tape.prompt(engine) for tape in going]
        sounds = [part[0, :, : tape.left] for tape, part in zip(going, parts, strict=True)]
        for length in {len(prompt) for prompt in prompts}:  # they differ by the text before the window
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
            given = [prompts[row] for row in rows], [sounds[row] for row in rows]
            written = engine.write(states[rows], *given, rules=Rules(engine.generation, length))
            for row, found in zip(rows, written, strict=True):
                going[row].add(found, *cut(found.tokens, times, min(window, going[row].left)))
    return [tape.result(engine) for tape in tapes]


def frame_count(clip: Clip) -> int:
    """Return the features' frames of a clip, each 10 ms."""
    return max(1, len(clip.samples) // whisper.HOP)


class _Tape:
    """One recording: what is left to hear of it, and what was heard."""

    def __init__(self, clip: Clip, features: torch.Tensor, spans: Spans) -> None:
        self.clip, self.features, self.spans = clip, features, list(spans)
        self.language: str | None = None  # as long as nobody has spoken
        self.segments: list[Segment] = []
        self.before: list[int] = []  # tokens for the next prompt

    @property
    def left(self) -> int:
        """Return the frames to the end of the span that is being heard."""
        return self.spans[0][1] - self.spans[0][0]

    def window(self, frames: int) -> torch.Tensor:
        """Return the features of the next window, filled up with zeros; of a short clip, silence goes before them."""
        begin, end = self.spans[0]
        end = end if end < frame_count(self.clip) else self.features.shape[2]
        part = self.features[:, :, begin : min(begin + frames, end)]
        return torch.nn.functional.pad(part, (0, frames - part.shape[2]))

    def prompt(self, engine: WindowEngine) -> list[int]:
        """Return the tokens before the next text; text before it takes at most half of the decoder's positions."""
        start = whisper.prompt(engine.generation, self.language, engine.task, timestamps=True)
        if not (engine.previous_text and self.before):
            return start
        most = engine.model.config.max_target_positions // 2 - 1
        return [whisper.previous_token(engine.generation), *self.before[-most:], *start]

    def add(self, found: Found, segments: Sequence[Segment], gone: int) -> None:
        """Note what was found in a window, within the span, and go on."""
        at, last = self.spans[0]
        for start, end, tokens in segments:
            begin, stop = at + start, min(at + end, last)
            if begin >= stop and not self.segments:  # the first time is a guess; later text in the padding is none
                begin = at
            if begin < stop:
                self.segments.append((begin, stop, tokens))
                self.before += tokens
        if found.temperature > SURE:
            self.before = []
        self.spans[:1] = [(at + gone, last)] if at + gone < last else []

    def result(self, engine: WindowEngine) -> Result:
        """Return the text, all together and in segments that have words."""
        decode = functools.partial(engine.processor.tokenizer.decode, skip_special_tokens=True)
        times = whisper.time_tokens(engine.generation)
        words = [[token for token in tokens if token not in times] for *_, tokens in self.segments]
        texts = [decode(part).strip() for part in words]
        segments = tuple(
            (start / 100, min(end / 100, self.clip.seconds), text)
            for (start, end, _), text in zip(self.segments, texts, strict=True)
            if text
        )
        whole = decode([token for part in words for token in part])  # tokens bring spaces, where a language has them
        return whole.strip(), self.language or engine.language or "en", segments
