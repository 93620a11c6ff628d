"""The tokens for times: where a decoder may write them, and how they cut what it wrote into segments.

As in openai-whisper (``whisper/decoding.py``, ``ApplyTimestampRules``; ``whisper/transcribe.py``), but that tokens above those
for times are words: those that were added to a published vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from asrlib.whisper import end_tokens, time_tokens

__all__ = ["Rules", "Segment", "cut"]

Segment = tuple[int, int, list[int]]  # start and end in frames of 10 ms, tokens with their times
FIRST = 50  # steps of 20 ms: a text begins within a second of its window


class Rules:
    """What may not be written where times are wanted.

    A time opens each segment and a later one closes it, unless the text ends within it; times never go back; the first is at
    most one second. Where all times together are more probable than any word, a time is written.
    """

    def __init__(self, generation: Any, prompt: int) -> None:
        """Take the generation configuration of a model, and the length of the prompts."""
        self.times, self.prompt = time_tokens(generation), prompt
        self.no_times, self.end = generation.no_timestamps_token_id, min(end_tokens(generation))
        first = getattr(generation, "max_initial_timestamp_index", None)
        self.first = self.times.start + (FIRST if first is None else first)

    def __call__(self, written: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Bar tokens in logits (clips, vocabulary), in place, after the tokens so far (clips, prompt and text)."""
        begin, after = self.times.start, self.times.stop
        logits[:, self.no_times] = -torch.inf
        for row, tokens in zip(logits, written[:, self.prompt :].tolist(), strict=True):
            timed = [token in self.times for token in tokens]
            if not tokens:
                row[:begin] = row[self.first + 1 :] = -torch.inf
            elif timed[-1] and all(timed[-2:]):  # a segment begins
                row[begin:after] = -torch.inf
            elif timed[-1]:  # it has ended
                row[: self.end] = row[after:] = -torch.inf
            if any(timed):
                last = next(token for token in reversed(tokens) if token in self.times)
                row[begin : last + (not timed[-1] or all(timed[-2:]))] = -torch.inf
        words = torch.cat([logits[:, :begin], logits[:, after:]], dim=1).amax(dim=1)
        rather = logits[:, begin:after].float().logsumexp(dim=1) > words
        logits[rather, :begin] = -torch.inf
        logits[rather, after:] = -torch.inf
        return logits


def cut(tokens: Sequence[int], times: range, frames: int) -> tuple[list[Segment], int]:
    """Cut what was written of a window into segments, at each pair of times: the end of one and the start of the next.

    Args:
        tokens: of one window, with times.
        times: their tokens, of two frames each.
        frames: of the window that are not padding.

    Returns:
        (segments, in frames of the window; how many frames of the window are done with, at least one). A last segment without
        an end is left to the next window, which begins where it does. Without any pair, all is one segment.
    """
    if not tokens:
        return [], frames
    timed = [token in times for token in tokens]
    pairs = [place for place in range(1, len(tokens)) if timed[place - 1] and timed[place]]
    ended = timed[-2:] == [False, True]  # nothing was heard after the last time
    if not pairs:
        last = next((2 * times.index(token) for token in reversed(tokens) if token in times[1:]), frames)
        return [(0, last, list(tokens))], frames
    places = [0, *pairs, *([len(tokens)] if ended else [])]
    segments = [
        (2 * times.index(tokens[first]), 2 * times.index(tokens[last - 1]), list(tokens[first:last]))
        for first, last in itertools.pairwise(places)
    ]
    return segments, frames if ended else segments[-1][1] or frames
