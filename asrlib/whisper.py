"""What every Whisper model has in common: the sizes of its windows, and the tokens before its text.

Radford et al. 2022, arXiv:2212.04356, section 2.2 (30-second windows, 10 ms hop, a convolution of stride 2) and 2.3 (the tokens
for language, task and times). Written once: all of asrlib takes them from here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from asrlib import AsrlibError, text

__all__ = [
    "BYTEWISE",
    "HOP",
    "POSITIONS",
    "POSITIONS_PER_SECOND",
    "SAMPLES_PER_POSITION",
    "WINDOW_SECONDS",
    "end_tokens",
    "is_multilingual",
    "language_of",
    "language_tokens",
    "no_speech_token",
    "previous_token",
    "prompt",
    "speaks_languages",
    "spell",
    "time_tokens",
]

WINDOW_SECONDS = 30  # of sound that a published model encodes at once
HOP = 160  # samples from frame to frame of the features
SAMPLES_PER_POSITION = 320  # the second convolution halves the frames
POSITIONS_PER_SECOND = 50  # of the encoder
POSITIONS = WINDOW_SECONDS * POSITIONS_PER_SECOND  # of a published encoder: 1,500
# Languages of whose scripts a letter takes two to three tokens, for the vocabulary has few of their letters.
BYTEWISE = frozenset(["am", "as", "bn", "bo", "gu", "ka", "km", "kn", "lo", "ml", "my", "pa", "si", "te"])
MULTILINGUAL = 51_865  # tokens of the smallest vocabulary with languages; an English-only one has one less


def is_multilingual(generation: Any) -> bool:
    """Say whether a model knows languages, by its generation configuration."""
    return bool(getattr(generation, "is_multilingual", True))


def speaks_languages(vocabulary: int) -> bool:
    """Say whether a model knows languages, by the size of its vocabulary."""
    return vocabulary >= MULTILINGUAL


def language_tokens(generation: Any) -> dict[int, str]:
    """Return token to language code, of a multilingual model."""
    return {token: name.strip("<|>") for name, token in generation.lang_to_id.items()}


def language_of(generation: Any, prompt: Sequence[int]) -> str | None:
    """Return the language code that a prompt names; None of an English-only model."""
    names = language_tokens(generation) if is_multilingual(generation) else {}
    return next((names[token] for token in prompt if token in names), None)


def prompt(
    generation: Any, language: str | None = "en", task: str = "transcribe", *, timestamps: bool = False
) -> list[int]:
    """Return the tokens that come before a text: start, language and task where there are several, no times unless wanted.

    Args:
        generation: the model's generation configuration.
        language: code; not asked of an English-only model.
        task: ``"transcribe"`` or ``"translate"``.
        timestamps: whether times are to be written.

    Raises:
        AsrlibError: a language that the model does not know, or another task of an English-only model.
    """
    start = [generation.decoder_start_token_id]
    if is_multilingual(generation):
        if f"<|{language}|>" not in generation.lang_to_id:
            raise AsrlibError(f"This model knows no language {language!r}: name another one, or take another model.")
        start += [generation.lang_to_id[f"<|{language}|>"], generation.task_to_id[task]]
    elif language not in (None, "en") or task != "transcribe":
        raise AsrlibError(
            "An English-only model transcribes English: choose a multilingual one for other languages or translation."
        )
    return start if timestamps else [*start, generation.no_timestamps_token_id]


def no_speech_token(generation: Any) -> int:
    """Return the token that stands for silence (section 3.8 of the paper); it lies before the one for no times."""
    return generation.no_timestamps_token_id - 1


def previous_token(generation: Any) -> int:
    """Return the token that comes before the text of the window before (section 2.3); it lies before the one for silence."""
    return no_speech_token(generation) - 1


def time_tokens(generation: Any) -> range:
    """Return the tokens for the times 0, 0.02 s ... 30 s; a vocabulary that was added to has words after them."""
    first = generation.no_timestamps_token_id + 1
    return range(first, first + POSITIONS + 1)


def end_tokens(generation: Any) -> set[int]:
    """Return the tokens that end a transcript; a published model has one, the Trainer makes a list of it."""
    end: int | Sequence[int] = generation.eos_token_id
    return {end} if isinstance(end, int) else set(end)


def spell(tokenizer: Any, said: str, language: str | None = None) -> list[int]:
    """Return the tokens that Whisper itself writes for a text, without those before it and the end.

    It begins with a space where the language has them, as in OpenAI's code. The tokenizers that were published for
    transformers do not put it there, and the multilingual one lacks the rule that joins a space and a t, so that " two" would
    be learnt as " " and "two", which no model writes.

    Args:
        tokenizer: of transformers, fast.
        said: the text as it is to be written.
        language: name or code.
    """
    space = " " if text.spaced(language) else ""
    return _all_rules(tokenizer).encode(space + said.strip(), add_special_tokens=False).ids


@functools.lru_cache(maxsize=4)
def _all_rules(tokenizer: Any) -> Tokenizer:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    rules, first = state["model"]["merges"], ["Ġ", "t"]
    if first not in rules and "Ġt" in state["model"]["vocab"]:
        rules.insert(0, first)
    return Tokenizer.from_str(json.dumps(state))
