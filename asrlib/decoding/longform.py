"""Recordings of more than a window, several side by side: window after window, as in the Whisper paper, section 3.8."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation import WhisperTimeStampLogitsProcessor

from asrlib import whisper
from asrlib.decoding.batching import Clip, Result
from asrlib.decoding.search import greedy

__all__ = ["decode"]


def decode(engine: Any, clips: Sequence[Clip], features: Sequence[torch.Tensor]) -> list[Result]:
    """Decode clips window after window, side by side, as the library's ``generate`` does; a window begins where the whole
    segments of the last one end.
    """
    generation = engine.generation
    frames, window = [max(1, len(clip.samples) // whisper.HOP) for clip in clips], 2 * engine.positions
    languages: list[str] = []
    segments: list[list[tuple[float, float, list[int]]]] = [[] for _ in clips]
    at, going = [0] * len(clips), list(range(len(clips)))
    while going:
        parts = [features[row][:, :, at[row] : at[row] + window] for row in going]
        parts = [torch.nn.functional.pad(part, (0, window - part.shape[2])) for part in parts]
        states, _ = engine.encode(torch.cat(parts))
        languages = languages or engine.languages(states)
        prompts = [whisper.prompt(generation, languages[row], engine.task, timestamps=True) for row in going]
        rules = WhisperTimeStampLogitsProcessor(generation, begin_index=len(prompts[0]))
        rules.eos_token_id = min(whisper.end_tokens(generation))  # the Trainer makes a list of it
        for row, tokens in zip(going, greedy(engine.model, states, prompts, rules=rules), strict=True):
            found, gone = _cut(tokens, rules.timestamp_begin, min(window, frames[row] - at[row]))
            segments[row] += [((at[row] + start) / 100, (at[row] + end) / 100, part) for start, end, part in found]
            at[row] += gone
        going = [row for row in going if at[row] < frames[row]]
    return [_written(engine.processor.tokenizer, *parts) for parts in zip(clips, languages, segments, strict=True)]


def _written(tokenizer: Any, clip: Clip, language: str, segments: Sequence[tuple[float, float, list[int]]]) -> Result:
    """Return the text of tokens, all together and in segments, without those that begin in the padding of the clip."""
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
    kept = [segments[0], *(segment for segment in segments[1:] if segment[0] < clip.seconds)]
    # Tokens bring their own spaces, where a language has them.
    whole = decode([token for *_, tokens in kept for token in tokens]).strip()
    return whole, language, tuple((start, end, decode(tokens).strip()) for start, end, tokens in kept)


def _cut(tokens: Sequence[int], begin: int, frames: int) -> tuple[list[tuple[int, int, list[int]]], int]:
    """Cut what was written of a window into segments, at each pair of times: the end of one and the start of the next.

    Args:
        tokens: of one window, with times.
        begin: token of the time 0; each further one is two frames later.
        frames: of the window that are not padding.

    Returns:
        ((start, end, tokens) of each segment, in frames of the window; how many frames of the window are done with). A last
        segment without an end is left to the next window, which begins where it does. Without any pair, all is one segment.
    """
    timed = [token >= begin for token in tokens]
    pairs = [place for place in range(1, len(tokens)) if timed[place - 1] and timed[place]]
    ended = timed[-2:] == [False, True]  # nothing was heard after the last time
    if not pairs:
        last = next((2 * (token - begin) for token in reversed(tokens) if token > begin), frames)
        return [(0, last, list(tokens))], frames
    places = [0, *pairs, *([len(tokens)] if ended else [])]
    segments = [
        (2 * (tokens[first] - begin), 2 * (tokens[last - 1] - begin), list(tokens[first:last]))
        for first, last in itertools.pairwise(places)
    ]
    return segments, frames if ended else segments[-1][1]
