"""What keeps a decoder from writing what nobody said: the tests and the fallback of the Whisper paper, section 3.8.

As in openai-whisper, but that small models are surer of their *you* where nobody speaks: what a model takes for silence is silence
also if it has no syllables, or a text of less than a token a second that is not quite probable. And where all
temperatures fail, the most probable text that does not repeat itself is taken, as in faster-whisper, unless it may be silence.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from asrlib import whisper
from asrlib.decoding.search import Found, Rules, search

__all__ = ["compression", "guarded", "most_tokens", "steady"]

NO_SPEECH = 0.6  # probability of silence above which a text must be probable, of a sound that varies, to be believed
PERHAPS = 0.3  # probability of silence above which a text must be probable at one of the temperatures
LOGPROB = -1.0  # mean log-probability below which a text is not believed
SPARSE = -0.5  # the same in silence, of a text of less than a token a second
COMPRESSION = 2.4  # above it a text repeats itself
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TOKENS_PER_SECOND = 20  # no speech holds more ...
SPARE_TOKENS = 20  # ... but for these ...
DENSER = 3  # ... and so many times as many where a letter takes several
SYLLABLE = 10  # frames, 0.1 s: a sound that is nowhere louder for so long ...
LOUDER = 10.0  # ... by so many decibels than its quietest tenth holds no speech


@dataclass(frozen=True)
class _Try:
    found: Found
    repeats: bool
    silent: bool

    @property
    def failed(self) -> bool:
        return (self.repeats or self.found.logprob < LOGPROB) and not self.silent


def compression(text: str) -> float:
    """Return how many times shorter zlib makes a text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def most_tokens(seconds: float, language: str | None = None) -> int:
    """Return how many tokens a sound of such length can hold, in a language if that is known (its code)."""
    return SPARE_TOKENS + round(TOKENS_PER_SECOND * seconds * (DENSER if language in whisper.BYTEWISE else 1))


def steady(sound: torch.Tensor) -> bool:
    """Say whether a sound has no syllables: silence, noise, a tone.

    Args:
        sound: its log-mel features, (mel bins, frames), without padding.
    """
    decades = torch.logsumexp(sound.float() * 4 * math.log(10), dim=0) / math.log(10)  # features are decades / 4
    levels = 10 * decades
    loud = levels.sort(descending=True).values[SYLLABLE - 1 : SYLLABLE]
    return bool((loud < levels.quantile(0.1) + LOUDER).all())


def guarded(
    model: Any,
    processor: Any,
    states: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    sounds: Sequence[torch.Tensor],
    bias: torch.Tensor | None = None,
    *,
    rules: Rules | None = None,
) -> list[Found]:
    """Search greedily; decode again, by chance and at higher and higher temperatures, what cannot be believed.

    Args:
        model, states, prompts, bias, rules: as for `asrlib.decoding.search.search`.
        processor: the model's ``WhisperProcessor``.
        sounds: log-mel features of each clip, (mel bins, frames), without padding.

    Returns:
        What was found in each clip: no tokens where nobody speaks, at most `most_tokens`, and of a window with times at most
        half of the decoder's positions, as in openai-whisper: the next window goes on from there.
    """
    half, times = model.config.max_target_positions // 2, whisper.time_tokens(model.generation_config)
    spoken = [whisper.language_of(model.generation_config, prompt) for prompt in prompts]
    limits = [most_tokens(sound.shape[1] / 100, language) for sound, language in zip(sounds, spoken, strict=True)]
    limits = [min(half, limit) for limit in limits] if rules else limits
    tries: list[list[_Try]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    for temperature in TEMPERATURES:
        part = (states, bias) if len(rows) == len(prompts) else (states[rows], bias if bias is None else bias[rows])
        found = search(
            model, part[0], [prompts[row] for row in rows], part[1], rules=rules, temperature=temperature, scores=True,
            max_new_tokens=[limits[row] for row in rows],
        )  # fmt: skip
        words = [[token for token in one.tokens if token not in times] for one in found]
        texts = processor.batch_decode(words, skip_special_tokens=True)
        for row, one, spoken, text in zip(rows, found, words, texts, strict=True):
            repeats = compression(text.strip()) > COMPRESSION
            tries[row].append(_Try(one, repeats, _silent(one, len(spoken), sounds[row])))
        rows = [row for row in rows if tries[row][-1].failed]
        if not rows:
            break
    return [_best(made) for made in tries]


def _silent(found: Found, tokens: int, sound: torch.Tensor) -> bool:
    least = SPARSE if tokens < sound.shape[1] / 100 else LOGPROB
    return found.no_speech > NO_SPEECH and (found.logprob < least or steady(sound))


def _best(tries: Sequence[_Try]) -> Found:
    """Return the last try if it did not fail, else the most probable, if possible of those that do not repeat themselves."""
    best = tries[-1]
    if best.failed:
        best = min(tries, key=lambda made: (made.repeats, -made.found.logprob))
    doubtful = best.found.logprob < LOGPROB and best.found.no_speech > PERHAPS
    return replace(best.found, tokens=[]) if best.silent or doubtful else best.found
