"""Pseudo-labels for pieces of a recording, and the measures by which wrong ones are dropped.

Nobody has listened to these labels. Their log-probability, compression ratio and probability of no speech are those of the Whisper paper
(arXiv:2212.04356, section 4.5); the probability of their language and the disagreement with a second transcript are added here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soxr
import torch

from asrlib import AsrlibError, audio, scoring, text, whisper
from asrlib.decoding import guards, network, search, transcription
from asrlib.io.progress import track
from asrlib.whisper import WINDOW_SECONDS

__all__ = ["Label", "Labeller", "Limits", "label", "rejection"]

BATCH = 8  # pieces labelled together
FASTER = 1.1  # speed of the sound when the same model transcribes it again
ASKED = 8  # pieces whose votes decide the language of a recording


@dataclass(frozen=True)
class Limits:
    """What a piece must keep to.

    Attributes:
        shortest, longest: seconds of a piece; no label can be learnt from more than a window of 30.
        logprob: mean log-probability of the label's tokens that is at least needed, in nats.
        compression: bytes of the label over those of its zlib compression; more means a loop of repeated text.
        no_speech: probability of no speech that is at most allowed.
        in_language: probability of the label's language, among all languages, that is at least needed: a model that is told a
            wrong language writes fluent nonsense, or translates.
        disagreement: WER (%) of the second transcript against the label that is at most allowed; CER in a language without
            spaces between words.

    The paper's limits, -1 and 2.4, say when a decoder should try again. Labels to learn from are better chosen more strictly;
    notebook 13 shows what each limit is worth.
    """

    shortest: float = 2.0
    longest: float = 30.0
    logprob: float = -0.6
    compression: float = 2.4
    no_speech: float = 0.6
    in_language: float = 0.1
    disagreement: float = 25.0

    def __post_init__(self) -> None:
        if not 0 <= self.shortest < self.longest <= WINDOW_SECONDS:
            raise AsrlibError(
                f"Pieces are from 0 to {WINDOW_SECONDS} s long: {self.shortest:g} to {self.longest:g} s is no such range."
            )


@dataclass(frozen=True)
class Label:
    """What a model wrote for a piece, and how sure it was; the attributes are those of `Limits`."""

    text: str
    language: str
    logprob: float
    compression: float
    no_speech: float
    in_language: float = 1.0
    disagreement: float = 0.0


def label(model: Any, processor: Any, pieces: Sequence[np.ndarray], language: str) -> Iterator[Label]:
    """Transcribe pieces greedily, without timestamps, and yield each label with the model's own confidence.

    Args:
        model: a ``WhisperForConditionalGeneration`` in eval mode.
        processor: its ``WhisperProcessor``.
        pieces: arrays of at most 30 s at 16 kHz.
        language: code of the language.
    """
    start = whisper.prompt(model.generation_config, language)
    for first in range(0, len(pieces), BATCH):
        states = _encode(model, processor, pieces[first : first + BATCH])
        written = search.search(model, states, [start] * len(states), scores=True)
        for found, share in zip(written, _shares(model, states, start), strict=True):
            said = processor.tokenizer.decode(found.tokens, skip_special_tokens=True).strip()
            yield Label(said, language, found.logprob, guards.compression(said), found.no_speech, share)


def _encode(model: Any, processor: Any, pieces: Sequence[np.ndarray]) -> torch.Tensor:
    """Return the encoder's states of some pieces, (pieces, positions, width)."""
    features = processor(list(pieces), sampling_rate=audio.SAMPLING_RATE, return_tensors="pt").input_features
    return network.encode(model, features.to(model.device, model.dtype))[0]


def _shares(model: Any, states: torch.Tensor, start: list[int]) -> list[float]:
    """Return the part of the prompt's language in the probability of all languages; 1 for a model that knows only one."""
    if not whisper.is_multilingual(model.generation_config):
        return [1.0] * len(states)
    languages = list(whisper.language_tokens(model.generation_config))
    with torch.inference_mode():
        read = torch.full((len(states), 1), start[0], device=states.device)
        logits = network.decoder(model, states, None, room=1).step(read)
    return logits[:, languages].float().softmax(dim=-1)[:, languages.index(start[1])].tolist()


def rejection(found: Label, limits: Limits) -> str:
    """Return why a label is dropped, in a few words; empty where it keeps to all limits."""
    reasons = {
        "no words": not any(map(str.isalnum, found.text)),
        "no speech": found.no_speech > limits.no_speech,
        "repeated text": found.compression > limits.compression,
        "another language": found.in_language < limits.in_language,
        "improbable": found.logprob < limits.logprob,
        "transcripts differ": found.disagreement > limits.disagreement,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


class Labeller:
    """A model that labels pieces, and a second transcript to compare with: another model's, or its own of the sound played faster.

    The same model must get another input if it is to disagree: faster sound moves each of its frames, merged padding hardly any.
    """

    def __init__(self, model: str, second: str | None, language: str | None) -> None:
        self.first = transcription.load(model)
        self.second = transcription.load(second) if second else self.first
        self.faster = 1.0 if second else FASTER
        for loaded, _ in (self.first, self.second):
            if loaded.config.max_source_positions < whisper.POSITIONS:
                raise AsrlibError(
                    f"The encoder context of {loaded.name_or_path} was cut, and pieces last up to {whisper.WINDOW_SECONDS} s: take a model with the whole context."
                )
            if language:
                whisper.prompt(loaded.generation_config, language)  # an English-only model refuses other languages
        self.language = language if whisper.is_multilingual(self.first[0].generation_config) else "en"

    def label(self, pieces: Sequence[np.ndarray], name: str) -> list[Label]:
        """Label the pieces of one recording, whose name goes before the progress."""
        if not pieces:
            return []
        language = self.language
        if not language:  # most pieces decide
            votes = search.detect_language(self.first[0], _encode(*self.first, pieces[:ASKED]))
            language = Counter(votes).most_common(1)[0][0]
        labels = list(track(label(*self.first, pieces, language), f"{name}: pieces labelled", len(pieces)))
        again = track(self._again(pieces, labels), f"{name}: second transcripts", len(pieces))
        return [
            replace(found, disagreement=_disagreement(found.text, other, language))
            for found, other in zip(labels, again, strict=True)
        ]

    def _again(self, pieces: Sequence[np.ndarray], labels: Sequence[Label]) -> Iterator[str]:
        """Yield a second transcript of labelled pieces.

        No token is less than a byte: a transcript of more tokens than the label has bytes differs already, so it ends there.
        """
        model, processor = self.second
        start = whisper.prompt(model.generation_config, labels[0].language)
        for first in range(0, len(pieces), BATCH):
            batch = [soxr.resample(piece, self.faster, 1) for piece in pieces[first : first + BATCH]]
            most = [20 + len(found.text.encode()) for found in labels[first : first + BATCH]]
            states = _encode(model, processor, batch)
            tokens = search.greedy(model, states, [start] * len(batch), max_new_tokens=most)
            yield from processor.batch_decode(tokens, skip_special_tokens=True)


def _disagreement(first: str, second: str, language: str) -> float:
    """Return the WER (%) of a second transcript against the first; the CER in a language without spaces between words."""
    first, second = map(text.normalizer(language), (first, second))
    return 100 * scoring.score([first], [second]).wer if first else 0.0
