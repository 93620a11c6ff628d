"""What keeps a decoder from writing what nobody said: the tests and the fallback of the Whisper paper, section 3.8.

Thresholds as published, and as in openai-whisper. Where all temperatures fail, the most probable text that does not repeat
itself is taken, as faster-whisper does; openai-whisper takes the last.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from asrlib import whisper
from asrlib.decoding.search import Found, Rules, search

__all__ = ["compression", "guarded", "most_tokens"]

NO_SPEECH = 0.6  # probability of silence above which a text must be probable to be believed
LOGPROB = -1.0  # mean log-probability below which a text is not believed
COMPRESSION = 2.4  # above it a text repeats itself
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TOKENS_PER_SECOND = 20  # no speech holds more ...
SPARE_TOKENS = 20  # ... but for these


def compression(text: str) -> float:
    """Return how many times shorter zlib makes a text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def most_tokens(seconds: float) -> int:
    """Return how many tokens a sound of such length can hold."""
    return SPARE_TOKENS + round(TOKENS_PER_SECOND * seconds)


def guarded(
    model: Any,
    processor: Any,
    states: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    bias: torch.Tensor | None = None,
    *,
    rules: Rules | None = None,
    max_new_tokens: int | Sequence[int],
) -> list[Found]:
    """Search greedily; decode again, by chance and at higher and higher temperatures, what cannot be believed.

    Args:
        model, states, prompts, bias, rules, max_new_tokens: as for `asrlib.decoding.search.search`.
        processor: the model's ``WhisperProcessor``.

    Returns:
        What was found in each clip; no tokens where nobody speaks.
    """
    tries: list[list[tuple[bool, Found]]] = [[] for _ in prompts]  # (whether it repeats itself, what was found)
    limits = max_new_tokens if isinstance(max_new_tokens, Sequence) else [max_new_tokens] * len(prompts)
    times, rows = whisper.time_tokens(model.generation_config), list(range(len(prompts)))
    for temperature in TEMPERATURES:
        part = (states, bias) if len(rows) == len(prompts) else (states[rows], bias if bias is None else bias[rows])
        found = search(
            model, part[0], [prompts[row] for row in rows], part[1], rules=rules, temperature=temperature, scores=True,
            max_new_tokens=[limits[row] for row in rows],
        )  # fmt: skip
        words = [[token for token in one.tokens if token not in times] for one in found]
        texts = processor.batch_decode(words, skip_special_tokens=True)
        for row, one, text in zip(rows, found, texts, strict=True):
            tries[row].append((compression(text.strip()) > COMPRESSION, one))
        rows = [row for row in rows if _failed(*tries[row][-1])]
        if not rows:
            break
    return [_best(found) for found in tries]


def _silent(found: Found) -> bool:
    return found.no_speech > NO_SPEECH and found.logprob < LOGPROB


def _failed(repeats: bool, found: Found) -> bool:
    return (repeats or found.logprob < LOGPROB) and not _silent(found)


def _best(tries: Sequence[tuple[bool, Found]]) -> Found:
    """Return the last try if it did not fail, else the most probable one, of those that do not repeat themselves if there are such."""
    best = tries[-1][1]
    if _failed(*tries[-1]):
        _, best = min(tries, key=lambda one: (one[0], -one[1].logprob))
    return replace(best, tokens=[]) if _silent(best) else best
